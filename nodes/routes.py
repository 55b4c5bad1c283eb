"""Serves the jobs over HTTP, `/livelora/jobs…` (docs/api.md), and sends the events that tell the browser how a training
goes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, get_args

from aiohttp import web
from server import PromptServer

from ..trainer.comfy import prompt_queue
from ..trainer.comfy.flags import many_users
from ..trainer.comfy.turns import prompt_id
from ..trainer.jobs.book import Book
from ..trainer.jobs.job import Job
from ..trainer.jobs.lease import Sharing
from ..trainer.jobs.states import ACTIVE, COMING
from .guard import Field, HttpError, answered, read_body, refuse_foreign, shown
from .jobs import EVERYBODY
from .recipe import most
from .requeue import Sender, duplicate, requeue
from .users import RequestUsers

JOBS, JOB = "/livelora/jobs", "/livelora/jobs/{job:[^/]+}"
"""The addresses of all jobs and of one. The pattern is written out because aiohttp's own does not match braces."""
MOST_LINES = 10000
"""The most lines of the metrics in one answer."""
MOST_STEPS = most("extra_steps")
"""The most steps by which a job can be extended in all."""


def install() -> None:
    """Adds the routes to ComfyUI's server and begins to tell browsers of jobs. Called once, before the server runs."""
    server = PromptServer.instance
    users = RequestUsers(server, EVERYBODY.remember)
    if many_users():
        users.watch(server)
    server.add_on_prompt_handler(prompt_queue.note_partial)
    face = Face(users)
    for method, path, handler in (
            ("GET", JOBS, face.list_jobs),
            ("GET", JOB, face.get_job),
            ("GET", JOB + "/metrics", face.get_metrics),
            ("GET", JOB + "/samples/{name:[^/]+}", face.get_sample),
            ("GET", JOBS + "/{rest:(?s:.*)}", face.get_nothing),
            ("POST", JOB + "/{action:[^/]+}", face.act)):
        server.routes.route(method, path)(answered(handler))
    EVERYBODY.install(_send, lambda: prompt_queue.tasks(server) > 0, users.current)


def announce(book: Book, job: Job, mode: str, workflow: Any, train_node: str, preview_node: str | None) -> None:
    """Tells the browser that queued the workflow which job its nodes show, and in which mode."""
    server = PromptServer.instance
    if server.client_id is None:  # queued by a program; ComfyUI would send it to all browsers
        return
    nodes = {"mode": mode, "workflow": workflow.get("id") if isinstance(workflow, dict) else None,
             "train_node": train_node, "preview_node": preview_node, "samples": job.folder.samples()}
    server.send_sync("livelora.job", {**book.status(job), **nodes}, server.client_id)


def left_out(node: str) -> str:
    """Returns why ComfyUI runs the prompt of this thread without some of the outputs behind a node; "" if it runs all.
    """
    server = PromptServer.instance
    question = prompt_queue.left_out(server, prompt_id() or "", node)
    return asyncio.run_coroutine_threadsafe(question, server.loop).result()


def _send(event: str, facts: dict[str, Any]) -> None:
    PromptServer.instance.send_sync(f"livelora.{event}", facts)


class Face:
    """Answers the requests. Each handler gives plain values, or raises what `answered` turns into an answer."""

    def __init__(self, users: RequestUsers) -> None:
        self._users = users

    async def list_jobs(self, request: web.Request) -> list[dict[str, Any]]:
        """Returns every job, oldest first."""
        book = EVERYBODY.book_of(self._users.of(request))
        return await asyncio.to_thread(lambda: [book.status(job) for job in book.all()])

    async def get_job(self, request: web.Request) -> dict[str, Any]:
        """Returns one job: its state, its losses, its samples."""
        book, job = await self._find(request)
        return await asyncio.to_thread(book.details, job)

    async def get_metrics(self, request: web.Request) -> dict[str, Any]:
        """Returns what was recorded after the step `since`."""
        since, most = _whole(request, "since", -1, -1), _whole(request, "most", MOST_LINES, 1)
        if most > MOST_LINES:
            raise HttpError(400, f"most must be from 1 to {MOST_LINES}, got {most}.")
        _, job = await self._find(request)
        return await asyncio.to_thread(_metrics, job, since, most)

    async def get_sample(self, request: web.Request) -> web.StreamResponse:
        """Returns a preview picture, by the name that the job listed."""
        _, job = await self._find(request)
        name = request.match_info["name"]
        path = await asyncio.to_thread(job.folder.sample_path, name)
        if path is None:
            raise HttpError(404, f"Job {job.id} has no sample '{shown(name)}'. Its details list them all.")
        return web.FileResponse(path)

    async def get_nothing(self, request: web.Request) -> None:
        """Refuses every other address of ours before ComfyUI looks for a file of its page, because a name that is too
        long fails there."""
        raise HttpError(404, f"There is nothing to read at '{shown(request.path)}'. docs/api.md lists what there is.")

    async def act(self, request: web.Request) -> dict[str, Any]:
        """Runs the action that the address names on a job."""
        refuse_foreign(request)
        book, job = await self._find(request)
        name = request.match_info["action"]
        if name not in HANDLERS:
            raise HttpError(404, f"There is no action '{shown(name)}'. Actions: {', '.join(HANDLERS)}.")
        handler, fields = HANDLERS[name]
        return await handler(Call(book, job, self._users.of(request), await read_body(request, fields)))

    async def _find(self, request: web.Request) -> tuple[Book, Job]:
        """Returns the user's jobs, and the one that the address names. Raises HttpError (404) if there is none."""
        book, name = EVERYBODY.book_of(self._users.of(request)), request.match_info["job"]
        job = await asyncio.to_thread(book.get, name)
        if job is None:
            raise HttpError(404, f"There is no job '{shown(name)}'. GET /livelora/jobs lists them all.")
        lost = job.awaited
        if lost not in ("", COMING) and not prompt_queue.is_queued(PromptServer.instance, lost):
            await asyncio.to_thread(job.not_coming, "", lost)  # its prompt was taken off ComfyUI's queue
        return book, job


def _metrics(job: Job, since: int, most: int) -> dict[str, Any]:
    """Returns the lines of whole steps only: whoever asks again with `last` must not miss a held-out loss that comes
    after the step's loss."""
    rests = job.state not in ACTIVE
    lines = job.folder.metrics()
    newest = lines[-1]["step"] if lines else since
    lines = [line for line in lines if since < line["step"] < newest + rests]
    if len(lines) > most:
        lines = ([line for line in lines[:most] if line["step"] < lines[most]["step"]]
                 or [line for line in lines if line["step"] == lines[0]["step"]])
    return {"lines": lines, "last": lines[-1]["step"] if lines else since}


def _whole(request: web.Request, name: str, default: int, low: int) -> int:
    """Returns a whole number from the query. Raises HttpError (400) if it is none or is below `low`."""
    text = request.query.get(name, str(default))
    if not re.fullmatch(r"-?[0-9]{1,9}", text) or int(text) < low:
        raise HttpError(400, f"{name} must be a whole number of at least {low}, got '{shown(text)}'.")
    return int(text)


@dataclass(frozen=True, slots=True)
class Call:
    """Holds an action that somebody wants of a job."""

    book: Book
    job: Job
    user: str
    body: dict[str, Any]

    @property
    def sender(self) -> Sender:
        """Returns who queues the prompt, for actions that need one."""
        return Sender(PromptServer.instance, self.user, self.body.get("client_id"))

    async def status(self) -> dict[str, Any]:
        """Returns the status of the job, which is the usual answer."""
        return await asyncio.to_thread(self.book.status, self.job)


Handler = Callable[[Call], Awaitable[dict[str, Any]]]
CLIENT = Field(str, "text: the id of a browser's websocket", required=False)
STEPS = Field(int, f"a whole number from 1 to {MOST_STEPS}", 1, MOST_STEPS)
POSITION = Field(int, "a whole number from 0, the front of the queue, to 100000", 0, 100000)
POLICY = Field(str, f"one of {', '.join(get_args(Sharing))}", choices=get_args(Sharing))
CHANGES = Field(dict, "an object: recipe fields and their new values")


def _plain(do: Callable[[Book, Job], None]) -> Handler:
    """Makes a handler for an action that takes no keys and is answered with the job's status."""
    async def handle(call: Call) -> dict[str, Any]:
        await asyncio.to_thread(do, call.book, call.job)
        return await call.status()

    return handle


async def _resume(call: Call) -> dict[str, Any]:
    applied = await asyncio.to_thread(call.book.resume, call.job)
    return await _go_on(call, applied, {})


async def _extend(call: Call) -> dict[str, Any]:
    steps = call.job.config.extra_steps + call.body["steps"]
    if steps > MOST_STEPS:
        raise HttpError(400, f"A job can be extended by {MOST_STEPS} steps in all, got {steps}. Start a new one.")
    try:
        applied = await asyncio.to_thread(call.book.extend, call.job, call.body["steps"])
    except ValueError as err:
        raise HttpError(400, str(err)) from err
    # Another extension may have come in between; from here on it would be refused.
    return await _go_on(call, applied, {"extra_steps": call.job.config.extra_steps + call.body["steps"]})


async def _go_on(call: Call, applied: bool, changes: dict[str, Any]) -> dict[str, Any]:
    """Answers with the job's status. If the job's model is not in memory, queues its workflow, which brings it."""
    if applied:
        return await call.status()
    try:
        prompt_id = await requeue(call.sender, call.job, changes)
    except Exception as err:
        message = f"The workflow of this job cannot be queued: {err}. Correct that, or open it and queue it by hand."
        await asyncio.to_thread(call.job.not_coming, message)
        if not isinstance(err, ValueError):
            raise
        raise HttpError(409, message) from err
    return {**await call.status(), "prompt_id": prompt_id}


async def _export(call: Call) -> dict[str, Any]:
    try:
        await asyncio.to_thread(call.book.export, call.job)
    except ValueError as err:
        raise HttpError(409, str(err)) from err
    return await call.status()


async def _move(call: Call) -> dict[str, Any]:
    await asyncio.to_thread(call.book.move, call.job, call.body["position"])
    return await call.status()


async def _share(call: Call) -> dict[str, Any]:
    await asyncio.to_thread(call.job.share, call.body["policy"])
    return await call.status()


async def _delete(call: Call) -> dict[str, Any]:
    await asyncio.to_thread(call.book.delete, call.job)
    return {"deleted": call.job.id}


async def _duplicate(call: Call) -> dict[str, Any]:
    try:
        return {"prompt_id": await duplicate(call.sender, call.job, call.body["changes"])}
    except ValueError as err:
        raise HttpError(400, str(err)) from err


HANDLERS: dict[str, tuple[Handler, dict[str, Field]]] = {
    "pause": (_plain(Book.pause), {}),
    "stop": (_plain(Book.stop), {}),
    "discard": (_plain(Book.discard), {}),
    "save": (_plain(lambda book, job: job.ask("save")), {}),
    "export": (_export, {}),
    "sample": (_plain(lambda book, job: job.ask("sample")), {}),
    "resume": (_resume, {"client_id": CLIENT}),
    "extend": (_extend, {"steps": STEPS, "client_id": CLIENT}),
    "move": (_move, {"position": POSITION}),
    "share": (_share, {"policy": POLICY}),
    "delete": (_delete, {}),
    "duplicate": (_duplicate, {"changes": CHANGES, "client_id": CLIENT}),
}
"""The actions that a POST may ask for → their handlers, and the keys of their bodies."""
