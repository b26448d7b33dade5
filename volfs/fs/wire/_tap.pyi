"""The wire tap: Python callbacks between the kernel's FUSE device and libfuse.

There is one tap in a process, for one session. Bodies are what follows the header of a request
or of a reply in <linux/fuse.h>; opcodes, too, are those of that header. All functions may be
called from any thread.
"""

from collections.abc import Callable

from typing_extensions import Buffer

def attach(library: str) -> None:
    """Tap the session that pyfuse3 mounts next; ``library`` is the path of its shared object
    (``pyfuse3.__file__``), already imported.

    Doing it again changes nothing. Raises RuntimeError, saying why, where it cannot be done.
    The session's descriptor is made non-blocking when mounted.
    """

def session_fd() -> int:
    """The descriptor of the tapped session; -1 before it is mounted and after close()."""

def on_request(
    opcode: int,
    callback: Callable[[int, int, int, int, int, bytes], object] | None,
    /,
) -> None:
    """Have ``callback(unique, node_id, uid, gid, pid, body)`` take the requests of an opcode
    from 1 to 127; None ends that.

    It is called in the thread that serves the session, for each request as it is read. Extensions
    at the end of the body are cut off. A body above 80 KiB is a memoryview, only to be used until
    the callback returns. It returns one of:

    - bytes, or another contiguous buffer: the body of a successful reply;
    - an errno, 1 to 511: an error reply; 0: success with an empty body;
    - None: the request is answered by reply() later, for which the event loop has to run;
    - Ellipsis: another thread answers it by reply(), without the event loop;
    - NotImplemented: the request goes on to libfuse as if nothing had been.

    FORGET and BATCH_FORGET get no reply, whatever is returned. An exception goes to
    sys.unraisablehook, and EIO to the client.
    """

def on_reply(opcode: int, callback: Callable[[bytes, bytes], bytes | None] | None, /) -> None:
    """Have ``callback(request_body, reply_body)`` see what libfuse replies, successfully, to
    requests of an opcode; None ends that.

    Bytes that it returns replace the reply's body. An exception goes to sys.unraisablehook, and
    the reply to the kernel as it was.
    """

def on_abandoned(callback: Callable[[int, int, bytes], object] | None, /) -> None:
    """Have ``callback(opcode, unique, reply_body)`` called when a request callback's successful
    answer came after the kernel had given the request up, as it does when the client is killed: so
    that what the answer gave away (a look-up count, an open file) can be taken back."""

def reply(unique: int, error: int, body: Buffer = b"", /) -> None:
    """Answer a request whose callback returned None: with an errno, or 0 and a body.

    Raises OSError: ENOENT when the kernel has given the request up, ENOTCONN after close(),
    otherwise what write(2) on /dev/fuse gives.
    """

def set_drain(turn: int, spin: int, linger_ms: int, /) -> None:
    """How long the tap goes on before it lets the event loop run: after at most ``turn``
    requests; when there is none, after looking ``spin`` times more, yielding the processor
    between, and then waiting for ``linger_ms`` milliseconds, both without the GIL.

    Spinning pauses for a while after it was in vain a few times in a row. Initially 1, 0, 0.
    May be called at any time, also in a callback.
    """

def counts() -> dict[int, int]:
    """How many requests of each opcode have been read, tapped or not. 0 stands for opcodes above
    127."""

def close() -> None:
    """Forget the descriptor and all callbacks; to be called before the session is closed."""
