"""Holds the workflow that a job came from. The job needs it to go on after a restart, and its samples carry it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

Node = dict[str, Any]
"""A node as ComfyUI's API writes it, with its class_type and inputs."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Holds a train node and everything that it depends on."""

    prompt: dict[str, Node]
    """The nodes by their ids, in API form."""
    node: str
    """The id of the train node."""
    workflow: dict[str, Any] | None = None
    """The workflow as the canvas saves it, if it was queued from there."""

    @classmethod
    def of(cls, prompt: dict[str, Node], node: str, workflow: dict[str, Any] | None = None) -> Graph | None:
        """Takes a node's graph out of a whole prompt. Returns None if another node made it while the prompt ran."""
        if node not in prompt:
            return None
        needed, found = [node], {}
        while needed:
            name = needed.pop()
            if name in found or name not in prompt:
                continue
            found[name] = prompt[name]
            needed += [str(value[0]) for value in prompt[name]["inputs"].values() if _is_link(value)]
        return cls({name: prompt[name] for name in prompt if name in found}, node, workflow)

    @property
    def inputs(self) -> dict[str, Any]:
        """Returns the inputs of the train node."""
        return self.prompt[self.node]["inputs"]

    def changed(self, changes: dict[str, Any]) -> Graph:
        """Returns the graph with other inputs of the train node. A name may be that of an input inside a preset."""
        nested = {name.rsplit(".", 1)[-1]: name for name in self.inputs}
        inputs = {**self.inputs, **{nested.get(name, name): value for name, value in changes.items()}}
        return replace(self, prompt={**self.prompt, self.node: {**self.prompt[self.node], "inputs": inputs}})

    def showing(self, job: str) -> dict[str, Any] | None:
        """Returns the workflow with the job's id at the train node and its preview node, where the page notes which job
        they show. Nodes inside subgraphs are left as they are."""
        if not isinstance(self.workflow, dict):
            return self.workflow
        workflow = copy.deepcopy(self.workflow)
        previews = [str(value[0]) for name, value in self.inputs.items() if name == "preview" and _is_link(value)]
        shown = {self.node, *previews}
        for node in workflow.get("nodes", ()):
            if str(node.get("id")) in shown:
                node["properties"] = {**node.get("properties", {}), "livelora_job": job}
        return workflow

    def as_dict(self) -> dict[str, Any]:
        """Returns the graph as plain values, for JSON."""
        return {"prompt": self.prompt, "node": self.node, "workflow": self.workflow}


def _is_link(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def behind(prompt: dict[str, Node], node: str) -> set[str]:
    """Returns the ids of the nodes that depend on a node of a prompt."""
    found = {node}
    while more := {name for name, entry in prompt.items() if name not in found and any(
            _is_link(value) and value[0] in found for value in entry["inputs"].values())}:
        found |= more
    return found - {node}
