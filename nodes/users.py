"""Finds out whose job it is where ComfyUI has many users (--multi-user)."""

from __future__ import annotations

import contextvars
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from .guard import HttpError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RequestUsers:
    """Knows the user of a request, and of a prompt that was queued by one. ComfyUI itself does not tell a node who
    queued it, or who asks for the list of nodes."""

    def __init__(self, server: Any, remember: Callable[[str, str], None]) -> None:
        """`remember` takes a prompt's id and its user."""
        self._manager, self._remember = server.user_manager, remember
        self._user: contextvars.ContextVar[str | None] = contextvars.ContextVar("livelora_user", default=None)

    def of(self, request: web.Request) -> str:
        """Returns the user's id, "default" where ComfyUI has no users. Raises HttpError (403) if there is no such user.
        """
        try:
            return self._manager.get_request_user_id(request)
        except KeyError as err:
            raise HttpError(403, "This ComfyUI has several users, and the header comfy-user names none of them (got "
                               f"{request.headers.get('comfy-user')!r}). Send the id that POST /users gave.") from err

    def current(self) -> str | None:
        """Returns the user whose request is being answered in this context; None if there is none."""
        return self._user.get()

    def watch(self, server: Any) -> None:
        """Begins to note whose request is being answered and who queues which prompt. Call it before the server starts.
        """
        server.app.middlewares.append(self._keep_user)
        server.add_on_prompt_handler(self._name_prompt)

    @web.middleware
    async def _keep_user(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Notes the user of a request while it is answered in this context."""
        token = self._user.set(self._known(request))
        try:
            return await handler(request)
        finally:
            self._user.reset(token)

    def _known(self, request: web.Request) -> str | None:
        try:
            return self._manager.get_request_user_id(request)
        except KeyError:
            return None  # ComfyUI lets such a prompt run, and LoRA Train refuses it

    def _name_prompt(self, request: dict[str, Any]) -> dict[str, Any]:
        """Gives a prompt its id before ComfyUI does, and remembers whose it is."""
        user = self._user.get()
        if user is None:
            return request
        if request.get("prompt_id") is None:
            request["prompt_id"] = str(uuid.uuid4())  # the only form that ComfyUI takes since 0.27
        if isinstance(request["prompt_id"], str):
            self._remember(request["prompt_id"], user)
        return request
