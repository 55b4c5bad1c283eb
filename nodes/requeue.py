"""Queues a job's workflow in ComfyUI again: to go on when its model is not in memory, or to train with other values."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict, dataclass
from typing import Any

from ..trainer.comfy.families import FAMILIES
from ..trainer.comfy.prompt_queue import put, validate
from ..trainer.jobs.job import Job
from ..trainer.jobs.states import Refused
from ..trainer.jobs.workflow import Graph
from ..trainer.recipe.config import TrainConfig
from ..trainer.training.targets import family_problems
from .jobs import EVERYBODY

JOB, SAVES = "livelora_job", "livelora_saves"
"""The keys in a prompt's extra_pnginfo for the id of the job that must go on, and for how a new job saves its LoRA."""
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True, slots=True)
class Sender:
    """Says who queues a prompt."""

    server: Any
    """ComfyUI's PromptServer."""
    user: str
    client_id: str | None
    """The id of the browser that is told how the prompt goes; None for no browser."""


async def requeue(sender: Sender, job: Job, changes: dict[str, Any]) -> str:
    """Queues the job's train node, and what it needs, so that this very job goes on. `changes` are new values for
    inputs of that node. Returns the prompt's id. Raises ValueError with ComfyUI's messages if the workflow does not
    validate."""
    graph = job.graph
    assert graph is not None, "a job without a workflow is refused before"
    about = {JOB: job.id, **({"workflow": graph.workflow} if graph.workflow else {})}
    changes = {"sharing": job.sharing, **changes}  # the workflow does not know of POST …/share
    return await _queue(sender, graph.changed(changes), about, job)


async def duplicate(sender: Sender, job: Job, changes: dict[str, Any]) -> str:
    """Queues a new job with the workflow of this one and other values in its recipe. Returns the prompt's id.

    Raises Refused if nothing changes or the workflow is not known, ValueError if the recipe cannot be trained."""
    job.check("duplicate")
    merged = merge(job.config, changes)
    try:
        config = TrainConfig(**merged)
    except (OverflowError, RecursionError) as err:  # what a regular expression can raise besides re.error
        raise ValueError(f"This recipe cannot be trained: {err}.") from err
    if all(problems := [[*family_problems(config, family)] for family in FAMILIES]):  # which one is not known here
        raise ValueError(" ".join(problems[0]))
    if config == job.config:
        raise Refused("The same recipe is the same job, so a duplicate needs at least one change, got "
                      f"{changes or 'none'}. Change for example its seed.")
    graph = job.graph
    assert graph is not None, "checked above"
    # Neither the job's id nor its workflow goes along: that workflow no longer says what is trained.
    saves = {SAVES: [asdict(how) for how in job.saving.wanted]}
    return await _queue(sender, graph.changed({name: merged[name] for name in changes}), saves)


def merge(config: TrainConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the recipe with changes, as plain values. Raises ValueError for a name that is no field, and for values
    that are not of their field's kind."""
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
    """Returns a JSON value as a field's kind; None if it is of another kind. A whole number is a number too."""
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    fits = type(value) is kind and not (kind is float and not math.isfinite(value))
    return value if fits else None


async def _queue(sender: Sender, graph: Graph, about: dict[str, Any], job: Job | None = None) -> str:
    """Queues the graph and returns the prompt's id. The mode is "background", whatever the workflow says, because
    nobody waits for the outputs of other nodes. `job` then waits for this prompt."""
    ready = await validate(sender.server, graph.changed({"mode": "background"}).prompt, graph.node)
    EVERYBODY.remember(ready.id, sender.user)
    client = {} if sender.client_id is None else {"client_id": sender.client_id}
    put(sender.server, ready, {"extra_pnginfo": about, **client})
    if job:  # only now, because an awaited prompt that is not in the queue counts as taken off it
        await asyncio.to_thread(job.await_prompt, ready.id)
    return ready.id
