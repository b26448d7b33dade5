"""Listener: the unix socket at which the plugin is found."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from volfs.errors import PluginError

DEFAULT = "/run/docker/plugins/volfs.sock"
"""Where dockerd looks for the plugin ``volfs``."""

_PATH_MAX = 107
"""Longest path of a socket in bytes: sun_path without its final zero (unix(7))."""

_BACKLOG = 4096
"""Clients that wait to be accepted; beyond net.core.somaxconn they fail."""


class Listener:
    """A listening unix socket for its owner alone, which takes the place of one that is dead.

    ``path`` is its name, ``socket`` the socket itself, until it is closed. May block, for as long
    as another process needs to do the same in that directory.
    """

    def __init__(self, path: str) -> None:
        """Listen at the absolute path ``path``, making its directory when it is missing.

        Raises PluginError when somebody else listens there, something that is no socket is in the
        way, or the socket cannot be made for another reason.
        """
        self.path = path
        if len(os.fsencode(path)) > _PATH_MAX:
            raise PluginError(
                f"the path of the plugin's socket is too long, at most {_PATH_MAX} bytes are"
                f" possible: {path}"
            )
        try:
            _make_directory(os.path.dirname(path))
            with _alone_in(os.path.dirname(path)):
                _make_way(path)
                self.socket = _listen(path)
                self._inode = _inode(path)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _in_use(path) from None
            raise PluginError(
                f"cannot make the plugin's socket {path}: {error.strerror}; choose another one"
            ) from None

    def remove(self) -> None:
        """Remove the socket's name, unless another has taken it. Connected clients stay."""
        with suppress(OSError), _alone_in(os.path.dirname(self.path)):
            if _inode(self.path) == self._inode:
                os.unlink(self.path)

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()


def _make_directory(path: str) -> None:
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(directory, 0o755)
            os.chmod(directory, 0o755)  # whatever the umask is


@contextmanager
def _alone_in(directory: str) -> Iterator[None]:
    """Keep others who would make or remove a socket there from doing so."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make_way(path: str) -> None:
    """Remove a socket at which nobody listens any more."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise PluginError(
            f"{path} is there and is no socket: remove it, or choose another with --socket"
        )
    if answers(path):
        raise _in_use(path)
    Path(path).unlink()


def answers(path: str) -> bool:
    """Return whether somebody listens at a socket. Raises OSError where that cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            # Too many wait to be accepted; or the socket is of another type, and open.
            if error.errno in (errno.EAGAIN, errno.EPROTOTYPE):
                return True
            raise
    return True


def _listen(path: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # bind(2) makes the file with the mode of the socket, whatever the umask allows: there
        # is no moment at which others could connect (unix_bind in the kernel).
        os.fchmod(listening.fileno(), 0o600)
        listening.bind(path)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _inode(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _in_use(path: str) -> PluginError:
    return PluginError(
        f"a plugin is served at {path} already: end it first, or choose another with --socket"
    )
