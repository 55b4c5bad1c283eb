"""Makes prompts and training take turns: takes the lease for ComfyUI's prompts, and lets a node wait for its job."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import comfy.model_management as mm
import comfy.utils
from comfy_execution.cache_provider import CacheContext, CacheProvider, CacheValue, register_cache_provider
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context

from ..jobs.book import Book
from ..jobs.job import Job
from ..jobs.lease import Lease

GLANCE = 0.2
"""Seconds between two looks of a waiting node at its job."""


class PromptTurns(CacheProvider):
    """Takes the lease for each prompt from its start to its end.

    It is a cache provider only because ComfyUI (since 0.18) calls a provider's two hooks in the prompt's thread. It
    caches nothing."""

    def __init__(self, lease: Lease, ended: Callable[[str], None]) -> None:
        """`ended` is called with the id of each prompt that is over."""
        self._lease, self._ended, self._begun = lease, ended, False

    def begin(self) -> None:
        """Begins to take the lease for every prompt. It is called within a prompt, and takes the lease for that one at
        once."""
        if not self._begun:
            self._begun = True
            self._lease.take_for_prompt(mm.processing_interrupted)
            register_cache_provider(self)
            _unload_under(self._lease)

    def on_prompt_start(self, prompt_id: str) -> None:
        self._lease.take_for_prompt(mm.processing_interrupted)

    def on_prompt_end(self, prompt_id: str) -> None:
        self._lease.give_back()
        self._ended(prompt_id)

    def should_cache(self, context: CacheContext, value: CacheValue | None = None) -> bool:
        return False

    async def on_lookup(self, context: CacheContext) -> CacheValue | None:
        return None

    async def on_store(self, context: CacheContext, value: CacheValue) -> None:
        return None


def _unload_under(lease: Lease) -> None:
    """Makes "Unload models" and /free take the lease, as a prompt does. ComfyUI (0.20 to 0.30) serves them in its
    prompt thread, but between two prompts, where it has no hook. Its list of loaded models has no lock: a model that is
    loaded at the same moment would end that thread, and with it every prompt to come."""
    unload = mm.unload_all_models

    def unload_all_models() -> None:
        waits = threading.current_thread() is not threading.main_thread()  # that one serves HTTP, and must not wait
        with lease.briefly() if waits else contextlib.nullcontext():
            unload()

    mm.unload_all_models = unload_all_models


def prompt_id() -> str | None:
    """Returns the id of the prompt that runs in this thread, or None if none does."""
    context = get_executing_context()
    return context.prompt_id if context else None


def wait(job: Job, book: Book, lease: Lease, node_id: str) -> None:
    """Lends the prompt's lease to the job until the job ends. Moves the node's progress bar and obeys ComfyUI's stop
    button.

    The button ends the job after its step, and then the prompt, by raising ComfyUI's InterruptProcessingException. When
    the program ends, `wait` does not return."""
    bar = comfy.utils.ProgressBar(job.config.total_steps, node_id=node_id)
    with job.waited_on(), lease.lent():
        while not job.ended.wait(GLANCE):
            try:
                bar.update_absolute(job.history.step)
                mm.throw_exception_if_processing_interrupted()
            except mm.InterruptProcessingException:
                book.interrupt(job)
    if job.closing:
        threading.Event().wait()  # a thread that tidies up while Python ends can abort the process
    if job.interrupted:
        raise mm.InterruptProcessingException
    bar.update_absolute(job.history.step)


def nothing_yet() -> ExecutionBlocker:
    """Returns what takes the place of a missing output. Nodes that depend on it are skipped, without an error."""
    return ExecutionBlocker(None)
