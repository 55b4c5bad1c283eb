"""The HTTP face of the jobs: `/livelora/jobs…`, and the events that tell the browser how a training goes."""

from __future__ import annotations

from aiohttp import web
from server import PromptServer

from ..trainer.job import Job
from .jobs import JOBS

ROUTES = PromptServer.instance.routes


def announce(job: Job, train_node: str, preview_node: str | None) -> None:
    """Tells the browser that queued the workflow which job its nodes show, then everyone what the job reports."""
    server = PromptServer.instance
    if _send not in job.listeners:
        job.listeners.append(_send)
    nodes = {"train_node": train_node, "preview_node": preview_node, "samples": job.folder.samples()}
    server.send_sync("livelora.job", {**job.status(), **nodes}, server.client_id)


def _send(event: str, facts: dict) -> None:
    PromptServer.instance.send_sync(f"livelora.{event}", facts)


def _job(request: web.Request) -> Job:
    job = JOBS.get(request.match_info["job"])
    if job is None:
        raise web.HTTPNotFound(text=f"There is no job '{request.match_info['job']}' since ComfyUI started.")
    return job


@ROUTES.get("/livelora/jobs")
async def list_jobs(request: web.Request) -> web.Response:
    """Every run since ComfyUI started, oldest first."""
    return web.json_response([job.status() for job in JOBS.all()])


@ROUTES.get("/livelora/jobs/{job}")
async def get_job(request: web.Request) -> web.Response:
    """One job: its state, its losses, its samples."""
    job = _job(request)
    return web.json_response({**job.status(), "losses": job.record.losses, "samples": job.folder.samples()})


@ROUTES.post("/livelora/jobs/{job}/stop")
async def stop_job(request: web.Request) -> web.Response:
    """Ends a job after the step under way and keeps what it learned."""
    job = _job(request)
    job.stop()
    return web.json_response(job.status())


@ROUTES.get("/livelora/jobs/{job}/samples/{name}")
async def get_sample(request: web.Request) -> web.StreamResponse:
    """A preview picture, by the name that the job listed."""
    path = _job(request).folder.sample_path(request.match_info["name"])
    if path is None:
        raise web.HTTPNotFound(text="There is no such sample.")
    return web.FileResponse(path)
