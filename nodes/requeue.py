"""Queues a job's workflow in ComfyUI again: to go on without its model in memory, or to train it with other values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..trainer.comfy.prompt_queue import put, validate
from ..trainer.jobs.job import Job
from ..trainer.jobs.states import Refused
from ..trainer.jobs.workflow import Graph
from ..trainer.recipe.config import TrainConfig
from .jobs import EVERYBODY

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True, slots=True)
class Sender:
    """Who queues."""

    server: Any
    """ComfyUI's PromptServer."""
    user: str
    client_id: str | None
    """The browser that hears how the prompt goes."""


async def requeue(sender: Sender, job: Job, changes: dict[str, Any]) -> str:
    """Queues the job's train node, and what it needs, to go on with this very job; `changes`: other inputs of that
    node. Gives the prompt's id. Raises ValueError with ComfyUI's messages if the workflow does not validate."""
    graph = job.graph
    assert graph is not None, "a job without a workflow is refused before"
    about = {"livelora_job": job.id, **({"workflow": graph.workflow} if graph.workflow else {})}
    changes = {"sharing": job.sharing, **changes}  # the workflow does not know of POST …/share
    return await _queue(sender, graph.changed(changes), about, job)


async def duplicate(sender: Sender, job: Job, changes: dict[str, Any]) -> str:
    """Queues a new job with the workflow of this one and other values in its recipe. Gives the prompt's id.

    Raises Refused if nothing changes or the workflow is not known, ValueError if the recipe cannot be trained."""
    job.check("duplicate")
    merged = merge(job.config, changes)
    try:
        config = TrainConfig(**merged)
    except (OverflowError, RecursionError) as err:  # what a regular expression can raise besides re.error
        raise ValueError(f"This recipe cannot be trained: {err}.") from err
    if config == job.config:
        raise Refused("The same recipe is the same job, so a duplicate needs at least one change, got "
                      f"{changes or 'none'}. Change for example its seed.")
    graph = job.graph
    assert graph is not None, "checked above"
    # Neither the job's id nor its workflow: that one no longer says what is trained.
    return await _queue(sender, graph.changed({name: merged[name] for name in changes}), {})


def merge(config: TrainConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """The recipe with changes, as plain values. Raises ValueError for what is no field, or not of the field's kind."""
    recipe, problems = config.as_dict(), []
    if unknown := [name for name in changes if name not in recipe]:
        raise ValueError(f"'{unknown[0][:80]}' is no field of a recipe. Fields: {', '.join(recipe)}.")
    for name, value in changes.items():
        if (fitting := _as_kind(value, type(recipe[name]))) is None:
            problems.append(f"{name} must be {KINDS[type(recipe[name])]}, got {str(value)[:80]!r}.")
        else:
            recipe[name] = fitting
    if problems:
        raise ValueError(" ".join(problems))
    return recipe


def _as_kind(value: Any, kind: type) -> Any:
    """A JSON value as a field's kind; None if it is another. A whole number is a number too."""
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    fits = type(value) is kind and not (kind is float and not math.isfinite(value))
    return value if fits else None


async def _queue(sender: Sender, graph: Graph, about: dict[str, Any], job: Job | None = None) -> str:
    """In the background, whatever the workflow says: nobody waits for the outputs of other nodes. `job` then waits for
    this prompt."""
    ready = await validate(sender.server, graph.changed({"mode": "background"}).prompt, graph.node)
    EVERYBODY.remember(ready.id, sender.user)
    if job:
        job.await_prompt(ready.id)
    client = {} if sender.client_id is None else {"client_id": sender.client_id}
    put(sender.server, ready, {"extra_pnginfo": about, **client})
    return ready.id
