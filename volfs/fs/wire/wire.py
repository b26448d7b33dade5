"""Wire: requests answered where they are read, and how they are answered.

Each opcode has a method that takes node id, body and sender, and gives an Answer. They stand in
tables: ``names``, ``attributes``, ``files``, ``directories`` and ``locks``.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import trio

from volfs.fs.agreement import Connection
from volfs.fs.inodes import Data
from volfs.fs.requests import WAITING, Later, Stall, errno_of
from volfs.fs.wire import _tap
from volfs.fs.wire.protocol import U64, Opcode, Who, opcode_name
from volfs.fs.wire.relief import Relief

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

_UNANSWERED = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET))

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
        self,
        methods: Mapping[Opcode, Method],
        take_back: Callable[[int, bytes], None],
        stall: Stall,
        connection: Connection,
    ) -> None:
        self._nursery: trio.Nursery | None = None
        self._take_back = take_back
        self._methods = methods
        self._answers = {opcode: self._answering(opcode, m) for opcode, m in methods.items()}
        self._stall = stall
        self._connection = connection
        self._relief: Relief | None = None
        self._aside: list[Callable[[], object]] = []
        self._threads = ThreadPoolExecutor(WAITING, "alone")
        self._waiting: dict[int, Callable[[], object] | None] = {}
        for opcode, answer in self._answers.items():
            _tap.on_request(opcode, answer)
        _tap.on_request(Opcode.INTERRUPT, self._interrupt)
        _tap.on_abandoned(self._abandoned)

    def begin(self, nursery: trio.Nursery) -> None:
        """Answer requests from now on; those that have to wait run in ``nursery``."""
        self._nursery = nursery
        self._relief = Relief(self._stall, self._connection, self._take, self._catch_up)
        self._go_on()

    def start(self, later: Later[Any]) -> None:
        """Have something done that nobody waits for."""
        if self._nursery is not None:
            self._nursery.start_soon(later)

    def close(self) -> None:
        """End the threads that run without the event loop."""
        if self._relief is not None:
            self._relief.close()
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
                if result.alone and result.call is not None:
                    self._threads.submit(self._answer_alone, opcode, unique, result.call)
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
        result: Data | int | None
        try:
            result = await later()
        except Exception as failure:  # noqa: BLE001  (errno_of logs what is unexpected)
            result = errno_of(failure, opcode.name.lower())
        finally:
            del self._waiting[unique]
            if not self._waiting:
                self._go_on()
        self._conclude(opcode, unique, result)

    def _answer_alone(self, opcode: Opcode, unique: int, call: Callable[[], Any]) -> None:
        """Answer a request in a thread of its own, without the event loop."""
        result: Data | int | None
        try:
            result = call()
        except Exception as failure:  # noqa: BLE001  (errno_of logs what is unexpected)
            result = errno_of(failure, opcode.name.lower())
        self._conclude(opcode, unique, result)

    def _conclude(self, opcode: Opcode, unique: int, result: Data | int | None) -> None:
        """Answer a request with a body or an errno, and take back what nobody received."""
        error, body = (result, b"") if isinstance(result, int) else (0, result or b"")
        if not self._reply(opcode, unique, error, body) and not error:
            self._abandoned(opcode, unique, bytes(body))

    def _reply(self, opcode: int, unique: int, error: int, body: Data) -> bool:
        """Answer a request; False if it has been given up."""
        try:
            _tap.reply(unique, error, body)
        except OSError as failure:
            log.debug("%s: the reply came too late: %s", opcode_name(opcode), failure.strerror)
            return False
        return True

    # -- while the event loop waits in a change

    def _take(
        self, number: int, unique: int, node_id: int, uid: int, gid: int, pid: int, body: bytes
    ) -> None:
        """Answer a request in the thread of the relief."""
        assert self._relief is not None
        sender = uid, gid, pid
        try:
            opcode = Opcode(number)
            method = self._methods[opcode]
        except (ValueError, KeyError):
            if number == Opcode.INTERRUPT:
                self._aside.append(partial(self._interrupt, unique, node_id, *sender, body))
            else:
                self._reply(number, unique, errno.ENOSYS, b"")  # as libfuse does
            return
        result: Answer
        try:
            result = method(node_id, body, Who(*sender))
        except Exception as failure:  # noqa: BLE001  (errno_of logs what is unexpected)
            result = errno_of(failure, opcode.name.lower())
        if isinstance(result, Later):
            if result.call is None:
                self._aside.append(partial(self._start, opcode, unique, result))
            else:
                done = partial(self._finish_elsewhere, opcode, unique, result)
                self._relief.elsewhere(result.call, result.on, done)
        elif opcode not in _UNANSWERED:
            self._conclude(opcode, unique, result)

    def _finish_elsewhere(
        self, opcode: Opcode, unique: int, later: Later[Any], outcome: Callable[[], Any]
    ) -> None:
        result: Data | int | None
        try:
            result = later.finish(outcome())
        except Exception as failure:  # noqa: BLE001  (errno_of logs what is unexpected)
            result = errno_of(failure, opcode.name.lower())
        self._conclude(opcode, unique, result)

    def _catch_up(self) -> None:
        """Do what takes the event loop, on which this is called."""
        aside, self._aside = self._aside, []
        for call in aside:
            call()

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
