"""HTTP as no well-behaved client speaks it."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from comfyui import Server


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of a refusal; a refusal holds nothing else."""
        assert list(self.json) == ["error"], self.json
        return self.json["error"]


def ask(server: Server, method: str, path: str, body: bytes | Iterable[bytes] | None = None, **headers: str) -> Answer:
    """Sends the path as it is written; a body in parts goes chunked, without a Content-Length. `_` in a header's name
    stands for `-`."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named, encode_chunked=body is not None and not isinstance(body, bytes))
        answer = connection.getresponse()
        return Answer(answer.status, answer.read())
    finally:
        connection.close()


def act(server: Server, job: str, action: str, body: Any = None, **headers: str) -> Answer:
    """An action with a JSON body."""
    return ask(server, "POST", f"/livelora/jobs/{job}/{action}", b"" if body is None else json.dumps(body).encode(),
               **headers)


def say(server: Server, request: bytes) -> Answer:
    """Sends bytes to the server and reads its answer until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return Answer(answer.status, answer.read())
