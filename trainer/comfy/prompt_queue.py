"""Looks into ComfyUI's queue of prompts, and puts in prompts of our own as its route POST /prompt does.

`server` is ComfyUI's PromptServer. What that route does is the same in 0.20.1, 0.27.0 and 0.30.0."""

from __future__ import annotations

import copy
import time
import uuid
from dataclasses import dataclass
from typing import Any

import execution

from ..jobs.workflow import behind

PARTIAL = "livelora_partial"
"""The key in a prompt's extra_data that says that a person asked for some of its outputs alone."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Holds a prompt that ComfyUI has checked and will take."""

    id: str
    prompt: dict[str, Any]
    """The prompt in API form."""
    outputs: list[str]
    """The ids of the output nodes that will run."""


async def validate(server: Any, prompt: dict[str, Any], node: str) -> Ready:
    """Checks whether the output node `node` of a prompt (API form), and what it needs, can run.

    Raises ValueError with ComfyUI's own messages if it cannot."""
    prompt_id, prompt = str(uuid.uuid4()), copy.deepcopy(prompt)  # since 0.27 an id is a UUID in this form
    server.node_replace_manager.apply_replacements(prompt)  # in place
    valid, error, outputs, node_errors = await execution.validate_prompt(prompt_id, prompt, [node])
    if not valid:
        raise ValueError(_readable(error or {}, node_errors))
    return Ready(prompt_id, prompt, outputs)


def put(server: Any, ready: Ready, extra: dict[str, Any]) -> None:
    """Queues a prompt behind those that wait. `extra` is ComfyUI's extra_data, such as client_id and extra_pnginfo. It
    is called in the server's event loop."""
    number = server.number
    server.number += 1
    extra = {**extra, "create_time": int(time.time() * 1000)}
    server.prompt_queue.put((number, ready.id, ready.prompt, extra, ready.outputs, {}))


def note_partial(request: dict[str, Any]) -> dict[str, Any]:
    """Notes in a request to POST /prompt whether it asks for some outputs alone. ComfyUI does not tell that later."""
    if request.get("partial_execution_targets") is not None:
        request.setdefault("extra_data", {})[PARTIAL] = True
    return request


async def left_out(server: Any, prompt_id: str, node: str) -> str:
    """Returns why ComfyUI runs a prompt without some of the outputs behind a node: its messages on those, and on what
    they need. Returns "" if there is none of them, or if nobody asked for them."""
    running, _ = server.prompt_queue.get_current_queue_volatile()
    for _, name, prompt, extra, outputs, *_ in running:
        if name == prompt_id and PARTIAL not in extra:
            missing = behind(prompt, node).difference(outputs)
            return _readable({}, (await execution.validate_prompt(prompt_id, copy.deepcopy(prompt), [*missing]))[3])
    return ""


def is_queued(server: Any, prompt_id: str) -> bool:
    """Returns whether a prompt runs or waits to run."""
    running, waiting = server.prompt_queue.get_current_queue_volatile()
    return any(item[1] == prompt_id for item in (*running, *waiting))


def tasks(server: Any) -> int:
    """Returns how many prompts run or wait to run."""
    return server.prompt_queue.get_tasks_remaining()


def _readable(error: dict[str, Any], node_errors: dict[str, Any]) -> str:
    """Returns ComfyUI's errors as one text: those of the nodes if there are any, else that of the prompt."""
    found = {f"{entry['class_type']} (node {node}): {_sentence(problem)}": None
             for node, entry in node_errors.items() for problem in entry["errors"]}
    return "; ".join(found) or _sentence(error)


def _sentence(problem: dict[str, Any]) -> str:
    if problem.get("type") == "custom_validation_failed":  # the name of an input, and the node's own sentence
        return problem["details"].partition(" - ")[2] or problem["details"]
    return ": ".join(filter(None, (problem.get("message"), problem.get("details"))))
