"""The volume plugin protocol over HTTP, as an ASGI application.

moby heeds ``Err`` in an answer of any status, podman only where the status is not 200. So every
failure is answered with another status. That Get finds no volume is not a failure.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from volfs.docker import messages
from volfs.docker.messages import CONTENT_TYPE, MalformedError, Reply, Request
from volfs.docker.plugin import VolumePlugin
from volfs.errors import VolfsError

BODY_MAX = 1 << 20
"""Largest request, in bytes."""

BODY_TIMEOUT = 30.0
"""Seconds that a client may take to send a request."""

_SURPLUS = 16 * BODY_MAX
_SURPLUS_TIMEOUT = 2.0
"""How much of an oversized request is still read, in bytes, and for how many seconds: most clients
look for an answer only when they have sent everything."""

log = logging.getLogger(__name__)


def make_application(
    plugin: VolumePlugin, *, surplus: int = _SURPLUS, surplus_timeout: float = _SURPLUS_TIMEOUT
) -> ASGIApp:
    """Return the application that lets ``plugin`` answer.

    ``surplus`` and ``surplus_timeout``: how much of an oversized request is still read, in bytes,
    and for how many seconds.
    """
    routes = [Route(path, _endpoint(call), methods=["POST"]) for path, call in plugin.calls.items()]
    application = Starlette(routes=routes, exception_handlers={HTTPException: _refuse})
    application.router.redirect_slashes = False
    return _Bounded(application, surplus, surplus_timeout)


def _endpoint(
    call: Callable[[Request], Awaitable[Reply]],
) -> Callable[[HTTPRequest], Awaitable[Response]]:
    async def answer(request: HTTPRequest) -> Response:
        # Whatever the headers say: moby sends no Content-Type, curl a wrong one.
        body = await request.body()
        try:
            reply = await call(messages.parse(body))
        except MalformedError as error:
            status, message = 400, str(error)
        except VolfsError as error:
            status, message = 500, str(error)
        except OSError as error:
            where = f": {error.filename}" if error.filename is not None else ""
            status, message = 500, f"{error.strerror or error}{where}"
        except Exception as error:
            log.exception("%s failed", request.url.path)
            status, message = 500, f"volfs failed, and its log says where: {error!r}"
        else:
            return _response(reply)
        log.info("%s is answered %d: %s", request.url.path, status, message)
        return _failure(status, message)

    return answer


async def _refuse(request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: f"{request.url.path} is no path of this protocol", 405: "only POST is answered"}
    response = _failure(error.status_code, what.get(error.status_code, error.detail))
    response.headers.update(error.headers or {})
    return response


def _response(reply: Reply, status: int = 200) -> Response:
    return Response(messages.encode(reply), status, media_type=CONTENT_TYPE)


def _failure(status: int, message: str) -> Response:
    return _response(messages.failure(message), status)


class _TooLargeError(Exception):
    pass


class _Bounded:
    """Reads a request's body before the application is asked, and refuses it if it is too large
    or comes too slowly. So whatever is answered, nothing is left unread in the server's queue.
    """

    def __init__(self, application: ASGIApp, surplus: int, surplus_timeout: float) -> None:
        self._application = application
        self._surplus = surplus
        self._surplus_timeout = surplus_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        try:
            with trio.fail_after(BODY_TIMEOUT):
                body = await _read(receive)
        except trio.TooSlowError:
            refusal = _failure(408, f"the request did not come within {BODY_TIMEOUT:.0f} s")
            await self._refuse(refusal, scope, receive, send)
        except _TooLargeError:
            with trio.move_on_after(self._surplus_timeout):
                await _skip(receive, self._surplus)
            refusal = _failure(413, f"the request is larger than {BODY_MAX} bytes")
            await self._refuse(refusal, scope, receive, send)
        else:
            if body is not None:
                await self._application(scope, _Again(body, receive), send)

    async def _refuse(self, refusal: Response, scope: Scope, receive: Receive, send: Send) -> None:
        refusal.headers["Connection"] = "close"
        async with trio.open_nursery() as nursery:
            # What still comes: the server waits for it to be taken before it ends the request.
            nursery.start_soon(_skip, receive, None)
            await refusal(scope, receive, send)
            nursery.cancel_scope.cancel()


async def _read(receive: Receive) -> bytes | None:
    """Return the body; None when the client went away before its end. Raises _TooLargeError."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > BODY_MAX:
            raise _TooLargeError
        if not message.get("more_body", False):
            return bytes(body)


async def _skip(receive: Receive, most: int | None) -> None:
    """Discard what comes until the request or the client ends, or it was more than ``most``."""
    skipped = 0
    while most is None or skipped <= most:
        message = await receive()
        skipped += len(message.get("body", b""))
        if message["type"] == "http.disconnect":
            return
        if most is not None and not message.get("more_body", False):
            return


class _Again:
    """Receives a body that was read before, and then what comes after it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            return await self._receive()
        return {"type": "http.request", "body": body, "more_body": False}
