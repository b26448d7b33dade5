"""The daemon around a service: into the background, logging, word to the service manager."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from volfs.errors import MountError, VolfsError

Serve = Callable[[Callable[[], None]], None]
"""Serves until it is told to end, and calls its argument once it answers. Raises VolfsError."""

_READY = b"ready"
_log = logging.getLogger(__name__)


def run_in_foreground(
    serve: Serve, what: str, level: int, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Serve here, logging to standard error and telling the service manager.

    ``what`` is served, for people. ``on_ready`` is called once it answers. SIGHUP does nothing:
    there is no log of ours to open anew, and the tree outlives the terminal. Raises what ``serve``
    raises.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log_to_stderr(level, stamp=False)

    def ready() -> None:
        on_ready()
        notify(f"READY=1\nSTATUS=Serving {what}")

    try:
        serve(ready)
    finally:
        notify("STOPPING=1")


def run_in_background(serve: Serve, level: int, log_file: str | None = None) -> None:
    """Start a daemon, and return once it answers. Raises what kept it from that.

    The daemon has a session of its own and survives the terminal; it logs to ``log_file``, or
    else to ``default_log()``, which it opens anew upon SIGHUP. In the daemon, this never returns.
    """
    log = Path(log_file).absolute() if log_file else _make_default_log()
    read_end, write_end = os.pipe()
    # Before there is a daemon, so that none is ever ended by it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    child = os.fork()
    if child == 0:
        os.close(read_end)
        os.setsid()
        _run_child(serve, level, log, write_end)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as pipe:
            answer = pipe.read()
    except KeyboardInterrupt:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        raise
    if answer == _READY:
        return
    _, status = os.waitpid(child, 0)
    if answer:
        told = json.loads(answer)
        raise _error_of(told["code"])(told["message"])
    code = os.waitstatus_to_exitcode(status)
    why = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    raise MountError(f"the daemon {why} before it served; its log is {log}")


def _error_of(code: int) -> type[VolfsError]:
    classes = (cls for cls in VolfsError.__subclasses__() if cls.exit_code == code)
    return next(classes, VolfsError)


def _run_child(serve: Serve, level: int, log: Path, pipe: int) -> NoReturn:
    def tell(answer: bytes) -> None:
        nonlocal pipe
        os.write(pipe, answer)
        os.close(pipe)
        pipe = -1

    failure: VolfsError | None = None
    try:
        _leave_terminal(log)
        log_to_stderr(level, stamp=True)
        # A working directory would keep its filesystem from being unmounted.
        os.chdir("/")
        serve(lambda: tell(_READY))
    except VolfsError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must hear of it
        _log.exception("the daemon failed")
        failure = VolfsError(f"the daemon failed: {error!r}; its log is {log}")
    if failure is None:
        sys.exit(0)
    if pipe >= 0:
        tell(json.dumps({"code": failure.exit_code, "message": str(failure)}).encode())
    else:
        _log.error("%s", failure)
    sys.exit(failure.exit_code)


def _leave_terminal(log: Path) -> None:
    """Connect standard input to nothing, standard output and error to the log."""
    try:
        _open_log(log)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = f"there is no directory {log.parent}" if missing else error.strerror
        hint = "make it, or name another log" if missing else "name another"
        raise MountError(f"cannot write the log {log}: {what}; {hint} with --log-file") from None
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_open_log_anew, args=(log,), daemon=True, name="log").start()


def _open_log(log: Path) -> None:
    # Not waiting for a reader, should it be a pipe.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    out = os.open(log, flags, 0o640)
    os.set_blocking(out, True)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)


def _open_log_anew(log: Path) -> None:
    """Open the log anew upon each SIGHUP, as logrotate(8) has moved it away.

    In a thread of its own, for which all others block the signal: the main thread may be acting
    as another user at that moment.
    """
    while True:
        signal.sigwait({signal.SIGHUP})
        try:
            _open_log(log)
        except OSError as error:
            _log.error("the log %s cannot be opened anew: %s", log, error.strerror)
        else:
            _log.info("the log was opened anew upon SIGHUP")


def _make_default_log() -> Path:
    log = default_log()
    # The directory of our own choice may be made; one that was given is rather a mistake.
    with suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
    return log


def default_log() -> Path:
    """Return where a daemon in the background logs unless told otherwise."""
    if os.geteuid() == 0:
        return Path("/var/log/volfs.log")
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local/state") / "volfs.log"


def log_to_stderr(level: int, *, stamp: bool) -> None:
    """Log to standard error, one line a record, with the time where nobody else adds it."""
    form = "%(levelname)s %(name)s: %(message)s"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {form}" if stamp else form))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Said whatever the level: how the tree is served, and which references were dropped.
    for name in ("volfs.level", "volfs.store.references"):
        logging.getLogger(name).setLevel(min(level, logging.INFO))


def notify(state: str) -> None:
    """Tell the service manager, if there is one that wants to know (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # A leading @ stands for the zero byte of an abstract address.
    target = "\0" + address[1:] if address[0] == "@" else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(target)
            sender.sendall(state.encode())
    except OSError as error:
        _log.warning("the service manager cannot be told: %s", error)
