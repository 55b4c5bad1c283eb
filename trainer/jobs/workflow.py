"""The workflow that a job came from: what it needs to go on after a restart, and what its samples carry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

Node = dict[str, Any]
"""class_type and inputs, as ComfyUI's API writes a node."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A train node and all that it depends on."""

    prompt: dict[str, Node]
    """Nodes by id, in API form."""
    node: str
    """Id of the train node."""
    workflow: dict[str, Any] | None = None
    """The workflow as the canvas saves it, if it was queued from there."""

    @classmethod
    def of(cls, prompt: dict[str, Node], node: str, workflow: dict[str, Any] | None = None) -> Graph | None:
        """Out of a whole prompt; None if the node was made while the prompt ran, by another one."""
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
        """Of the train node."""
        return self.prompt[self.node]["inputs"]

    def changed(self, changes: dict[str, Any]) -> Graph:
        """With other inputs of the train node; a name may be that of an input inside a preset."""
        nested = {name.rsplit(".", 1)[-1]: name for name in self.inputs}
        inputs = {**self.inputs, **{nested.get(name, name): value for name, value in changes.items()}}
        return replace(self, prompt={**self.prompt, self.node: {**self.prompt[self.node], "inputs": inputs}})

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"prompt": self.prompt, "node": self.node, "workflow": self.workflow}


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
