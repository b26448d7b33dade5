"""Wire: requests answered where they are read, and how they are answered.

Each opcode has a method that takes node id, body and sender, and gives an Answer. They stand in
tables: ``names``, ``attributes``, ``files``, ``directories`` and ``locks``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import trio

from volfs.fs.inodes import Data
from volfs.fs.requests import WAITING, Later, errno_of
from volfs.fs.wire import _tap
from volfs.fs.wire.protocol import U64, Opcode, Who, opcode_name

log = logging.getLogger(__name__)

Answer = Data | int | Later[Any] | None
"""The body of the reply, None where that is empty; an errno; or a Later of these."""

Method = Callable[[int, bytes, Who], Answer]

_EMPTY = 0
_LATER = None
_BY_A_THREAD = ...
"""What the tap is told instead of a body or an errno: success with an empty body; the request is
answered later, for which the event loop has to run; a thread answers it, for which it need not.
(See on_request in _tap.pyi.)"""

_ANONYMOUS = Who(0, 0, 0)
_FOR_ANYBODY = frozenset(
    (
        *(Opcode.LOOKUP, Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.GETATTR, Opcode.READLINK),
        *(Opcode.UNLINK, Opcode.LINK, Opcode.GETXATTR),
        *(Opcode.READ, Opcode.WRITE, Opcode.RELEASE, Opcode.FLUSH, Opcode.FSYNC),
        *(Opcode.READDIR, Opcode.READDIRPLUS, Opcode.RELEASEDIR),
    )
)
"""Frequent requests whose sender does not matter, as the kernel has checked permissions."""

_TURN = 256
_TURN_WHILE_WAITING = 32
"""Requests answered before the event loop gets its turn; fewer while others wait for it."""

_SPIN = 64
"""How many times the descriptor is looked at before the process goes to sleep, as long as that
finds requests: about 100 µs, a little more than it takes to wake a client on another processor. It
saves being woken. (KVM polls before it halts for the same reason.)"""

_LINGER_MS = 5
"""How long to wait for a next request outside the event loop when nothing else is going on."""


class Wire:
    """Answers the requests of the tables, in the tap.

    ``take_back(opcode, body)`` undoes what a reply gave away that nobody was there to receive.
    """

    def __init__(
        self, methods: Mapping[Opcode, Method], take_back: Callable[[int, bytes], None]
    ) -> None:
        self._nursery: trio.Nursery | None = None
        self._take_back = take_back
        self._threads = ThreadPoolExecutor(WAITING, "alone")
        self._waiting: dict[int, Callable[[], object] | None] = {}
        for opcode, method in methods.items():
            _tap.on_request(opcode, self._answering(opcode, method))
        _tap.on_request(Opcode.INTERRUPT, self._interrupt)
        _tap.on_abandoned(self._abandoned)

    def begin(self, nursery: trio.Nursery) -> None:
        """Answer requests from now on; those that have to wait run in ``nursery``."""
        self._nursery = nursery
        self._go_on()

    def start(self, later: Later[Any]) -> None:
        """Have something done that nobody waits for."""
        if self._nursery is not None:
            self._nursery.start_soon(later)

    def close(self) -> None:
        """End the threads that run without the event loop."""
        self._threads.shutdown(cancel_futures=True)

    @property
    def waiting(self) -> int:
        """How many requests are still to be answered."""
        return len(self._waiting)

    def _answering(self, opcode: Opcode, method: Method) -> Callable[..., object]:
        name = opcode.name.lower()
        anonymous = opcode in _FOR_ANYBODY

        def answer(unique: int, node_id: int, uid: int, gid: int, pid: int, body: bytes) -> object:
            try:
                who = _ANONYMOUS if anonymous else Who(uid, gid, pid)
                result = method(node_id, body, who)
            except Exception as error:  # noqa: BLE001  (errno_of logs what is unexpected)
                return errno_of(error, name)
            if result is None:
                return _EMPTY
            if isinstance(result, Later):
                if result.alone is not None:
                    self._threads.submit(self._answer_alone, opcode, unique, result.alone)
                    return _BY_A_THREAD
                self._start(opcode, unique, result)
                return _LATER
            return result

        return answer

    # -- requests that have to wait

    def _start(self, opcode: Opcode, unique: int, later: Any) -> None:
        if not self._waiting:
            _tap.set_drain(_TURN_WHILE_WAITING, 0, 0)  # the event loop has something to do
        self._waiting[unique] = later.interrupt
        assert self._nursery is not None
        self._nursery.start_soon(self._finish, opcode, unique, later)

    def _go_on(self) -> None:
        """Go from one request to the next without the event loop."""
        _tap.set_drain(_TURN, _SPIN, _LINGER_MS)

    async def _finish(self, opcode: Opcode, unique: int, later: Later[Any]) -> None:
        error, body = 0, None
        try:
            body = await later()
        except Exception as failure:  # noqa: BLE001  (errno_of logs what is unexpected)
            error = errno_of(failure, opcode.name.lower())
        finally:
            del self._waiting[unique]
            if not self._waiting:
                self._go_on()
        if isinstance(body, int):
            error, body = body, None
        if not self._reply(opcode, unique, error, body or b"") and not error:
            self._abandoned(opcode, unique, bytes(body or b""))

    def _answer_alone(self, opcode: Opcode, unique: int, call: Callable[[], None]) -> None:
        """Answer a request in a thread of its own, without the event loop."""
        error = 0
        try:
            call()
        except Exception as failure:  # noqa: BLE001  (errno_of logs what is unexpected)
            error = errno_of(failure, opcode.name.lower())
        self._reply(opcode, unique, error, b"")

    def _reply(self, opcode: Opcode, unique: int, error: int, body: Data) -> bool:
        """Answer a request; False if it has been given up."""
        try:
            _tap.reply(unique, error, body)
        except OSError as failure:
            log.debug("%s: the reply came too late: %s", opcode.name, failure.strerror)
            return False
        return True

    def _interrupt(
        self, unique: int, node_id: int, uid: int, gid: int, pid: int, body: bytes
    ) -> None:
        # The request it is about was read before. One that cannot be interrupted is answered as
        # ever; INTERRUPT itself gets no reply.
        (request,) = U64.unpack_from(body)
        interrupt = self._waiting.get(request)
        if interrupt is not None:
            interrupt()

    def _abandoned(self, opcode: int, unique: int, body: bytes) -> None:
        try:
            self._take_back(opcode, body)
        except Exception:
            log.exception("what %s gave could not be taken back", opcode_name(opcode))
