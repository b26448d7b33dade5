"""Opening a scope: making what is missing of it, and refusing what could not work."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import ExitStack
from pathlib import Path

from volfs.errors import ScopeError
from volfs.linux.durable import DIRECTORY, opened, sync_directory


class ScopeDirectory:
    """A directory of a scope: made if it is missing, made again if somebody deletes it."""

    def __init__(self, scope: str, name: str, top: int) -> None:
        """``top`` is a descriptor of the scope, which must outlive this: it stays as ``top``."""
        self.path = f"{scope}/{name}"
        self.fd = _make_and_open(name, top)
        self.top = top
        self._name = name
        self._lock = threading.Lock()

    def ensured(self) -> int:
        """Return a descriptor of the directory after seeing to it that it is still there.

        Raises ScopeError when the whole scope was deleted.
        """
        if os.fstat(self.fd).st_nlink == 0:
            with self._lock:
                self._make_again()
        return self.fd

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
        self.fd = -1

    def _make_again(self) -> None:
        try:
            fd = _make_and_open(self._name, self.top)
        except FileNotFoundError:
            raise ScopeError(f"{self.path} was deleted with its scope; start again") from None
        # In one step: other threads are using the number.
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)


class Scope:
    """The directories of a scope. ``path`` is its real absolute path.

    There is no trash (None) where it is missing on a read-only filesystem.
    """

    path: str
    volumes: ScopeDirectory
    trash: ScopeDirectory | None

    def __init__(self, path: str) -> None:
        """Open a scope. What is missing of it is made, what is there keeps its mode and owner.

        Raises ScopeError.
        """
        self.path = path
        with ExitStack() as opened_here:
            try:
                self._open(opened_here)
            except OSError as error:
                raise _refused(error, path) from error
            self._on_close = opened_here.pop_all()

    def close(self) -> None:
        """Close all descriptors."""
        self._on_close.close()

    def _open(self, opened_here: ExitStack) -> None:
        top = self._open_top()
        opened_here.callback(os.close, top)
        self.volumes = ScopeDirectory(self.path, "volumes", top)
        opened_here.callback(self.volumes.close)
        _check_place(self.volumes, top)
        self.trash = None
        try:
            self.trash = ScopeDirectory(self.path, "trash", top)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return
        opened_here.callback(self.trash.close)
        _check_place(self.trash, top)

    def _open_top(self) -> int:
        # Its parent is opened only to make it: one may be let through but not let look.
        try:
            return os.open(self.path, DIRECTORY)
        except FileNotFoundError:
            parent, name = os.path.split(self.path)
            Path(parent).mkdir(parents=True, exist_ok=True)
            with opened(parent) as above:
                return _make_and_open(name, above)


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


def _check_place(directory: ScopeDirectory, top: int) -> None:
    if _place(directory.fd) != _place(top):
        raise ScopeError(
            f"{directory.path} is on another filesystem than the scope, but volumes are moved"
            " into the trash by a rename: mount the filesystem at the scope itself instead"
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
