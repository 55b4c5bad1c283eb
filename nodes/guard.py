"""Guards the actions of the HTTP API against foreign pages and large or malformed bodies, and answers with an error."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ..trainer.comfy.flags import allowed_origin
from ..trainer.jobs.states import Refused

log = logging.getLogger(__name__)

LARGEST_BODY = 64 * 1024
"""The largest body of a request that is taken, in bytes."""


class HttpError(Exception):
    """Is raised for a request that cannot be served. It holds the answer: an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def answered(handler: Callable[[web.Request], Awaitable[Any]]) -> Callable[[web.Request], Awaitable[Any]]:
    """Turns a handler that gives plain values or raises HttpError, Refused or OSError into one that gives responses."""

    @functools.wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            found = await handler(request)
        except HttpError as err:
            return _no(err.status, err.sentence)
        except Refused as err:
            return _no(409, str(err))
        except OSError as err:
            log.exception("%s %s failed", request.method, request.path)
            return _no(500, f"The disk failed ({err}). Make room there and allow access, then try again.")
        return found if isinstance(found, web.StreamResponse) else web.json_response(found)

    return answer


def _no(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)


def refuse_foreign(request: web.Request) -> None:
    """Raises HttpError (403) for a request that a browser sends for another site's page.

    ComfyUI's own check looks only at requests that are marked cross-site or sent to a loopback address."""
    allowed, host = allowed_origin(), request.headers.get("Host", "").lower()
    for origin in request.headers.getall("Origin", []):
        if allowed not in ("*", origin) and origin.lower().partition("://")[2] != host:
            raise HttpError(403, f"A page of '{shown(origin)}' may not change jobs on '{shown(host)}'. Open ComfyUI "
                               "under its own address, or start it with --enable-cors-header.")


@dataclass(frozen=True, slots=True)
class Field:
    """Says what the value of a key in a body must be."""

    kind: type
    means: str
    """The value in words, for somebody who sends something else: "a whole number from 1 to 100000"."""
    low: int = 0
    high: int = 0
    """A number must be from `low` to `high`."""
    required: bool = True
    choices: tuple[Any, ...] = ()
    """The values that are possible; empty if others are too."""

    def fits(self, value: Any) -> bool:
        """Returns whether a value is of this kind, in range and possible. True is no number."""
        fits = type(value) is self.kind and (self.kind is not int or self.low <= value <= self.high)
        return fits and (not self.choices or value in self.choices)


async def read_body(request: web.Request, fields: dict[str, Field]) -> dict[str, Any]:
    """Returns the request's JSON object. An empty body counts as an empty object. Raises HttpError (413 or 400)."""
    body = _object(await _bytes(request))
    takes = ", ".join(fields) or "none"
    for name in body:
        if name not in fields:
            raise HttpError(400, f"There is no key '{shown(name)}' for this action. It takes: {takes}.")
    for name, field in fields.items():
        if name not in body and field.required:
            raise HttpError(400, f"{name} is missing. Give {field.means}.")
        if name in body and not field.fits(body[name]):
            raise HttpError(400, f"{name} must be {field.means}, got {shown(json.dumps(body[name]))}.")
    return body


async def _bytes(request: web.Request) -> bytes:
    """Reads the body. Raises HttpError if it cannot be read (400), or if it is larger than LARGEST_BODY (413), whatever
    Content-Length promises."""
    found = bytearray()
    try:
        async for chunk in request.content.iter_chunked(8192):
            found += chunk
            if len(found) > LARGEST_BODY:
                raise HttpError(413, f"The body is larger than {LARGEST_BODY} bytes, the most that an action takes. "
                                     "Send less.")
    except (web.RequestPayloadError, web.HTTPException) as err:
        raise HttpError(400, f"The body cannot be read ({shown(str(err))}). Send JSON, as it is or with the "
                           "Content-Encoding that you name.") from err
    return bytes(found)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body, parse_constant=_no_number) if body.strip() else {}
    except (ValueError, RecursionError) as err:
        raise HttpError(400, f"The body is not JSON ({type(err).__name__}: {shown(str(err))}). Send an object such as "
                           '{"steps": 100}.') from err
    if not isinstance(found, dict):
        raise HttpError(400, f"The body must be an object such as {{\"steps\": 100}}, got {shown(json.dumps(found))}.")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def shown(text: str) -> str:
    """Shortens what somebody sent, so that it can be sent back."""
    return text if len(text) <= 80 else f"{text[:80]}…"
