"""Opening a scope: making what is missing of it, and refusing what could not work."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

from volfs.durable import DIRECTORY, opened, sync_directory
from volfs.errors import ScopeError


def open_scope(scope: str) -> tuple[int, int | None]:
    """Make what is missing of a scope, and return descriptors of its volumes and its trash.

    ``scope`` is a real absolute path. What is there keeps its mode and owner. There is no trash
    (None) where it is missing on a read-only filesystem. Raises ScopeError.
    """
    try:
        parent, name = os.path.split(scope)
        Path(parent).mkdir(parents=True, exist_ok=True)
        with opened(parent) as above:
            top = _make_and_open(name or ".", above)
    except OSError as error:
        raise _refused(error, scope) from error
    with ExitStack() as on_failure:
        try:
            volumes = _make_and_open("volumes", top)
            on_failure.callback(os.close, volumes)
            _check_place("volumes", volumes, top, scope)
            trash = _open_trash(top)
            if trash is not None:
                on_failure.callback(os.close, trash)
                _check_place("trash", trash, top, scope)
        except OSError as error:
            raise _refused(error, scope) from error
        finally:
            os.close(top)
        on_failure.pop_all()
    return volumes, trash


def _make_and_open(name: str, dir_fd: int) -> int:
    """Open a directory, and make it, durably, if it is missing."""
    try:
        return os.open(name, DIRECTORY, dir_fd=dir_fd)
    except FileNotFoundError:
        try:
            os.mkdir(name, 0o700, dir_fd=dir_fd)
        except FileExistsError:
            pass  # another process opens this scope too
        else:
            sync_directory(dir_fd)
        return os.open(name, DIRECTORY, dir_fd=dir_fd)


def _open_trash(top: int) -> int | None:
    try:
        return _make_and_open("trash", top)
    except OSError as error:
        if error.errno == errno.EROFS:
            return None
        raise


def _check_place(name: str, fd: int, top: int, scope: str) -> None:
    if _place(fd) != _place(top):
        raise ScopeError(
            f"{scope}/{name} is on another filesystem than {scope}, but volumes are moved into"
            " the trash by a rename: mount the filesystem at the scope itself instead"
        )


def _place(fd: int) -> tuple[int, str]:
    """Return the device and the mount a descriptor is on.

    rename(2) answers EXDEV between two mounts, be they of one filesystem.
    """
    fdinfo = Path(f"/proc/self/fdinfo/{fd}").read_text()
    mount = next((line for line in fdinfo.splitlines() if line.startswith("mnt_id:")), "")
    return os.fstat(fd).st_dev, mount


def _refused(error: OSError, scope: str) -> ScopeError:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            advice = "no permission; run this as its owner or as root, or choose another scope"
        case errno.EROFS:
            advice = "it is missing and the filesystem is read-only; choose another scope"
        case errno.ENOTDIR | errno.ELOOP | errno.EEXIST:
            advice = "not a directory; a scope and its volumes and trash must be directories"
        case _:
            advice = os.strerror(error.errno or 0)
    return ScopeError(f"scope {scope} cannot be used: {_named(error, scope)}: {advice}")


def _named(error: OSError, scope: str) -> str:
    name = os.fsdecode(error.filename) if error.filename is not None else ""
    return name if os.path.isabs(name) else f"{scope}/{name}"
