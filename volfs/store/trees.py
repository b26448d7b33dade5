"""The trees of a scope on this machine: which superblocks they are, and what is open in them.

A mount says of itself what it likes, and a tree that was unmounted lazily is in no mount table
at all. So each daemon announces its tree in the scope, where nobody else can write:
``SCOPE/trees/HOST.BOOT.DEVICE.TOKEN`` is a socket, named for the machine, its boot and the device
number of the tree's superblock, as mountinfo shows it. That number is no other filesystem's for as
long as the superblock lives, wherever it is mounted, bound or detached.

The daemon listens at the socket: a connection that is refused tells that it has ended, whatever
it died of. To who sends a volume's name it answers what is open of that volume: no process
table shows that of a tree that is mounted nowhere. The answers come from a thread that waits for
nothing but the disk, so two daemons can ask each other.

An announcement is void after a boot, and with it the numbers begin anew. That of a daemon which
has ended stays while anything of its tree is mounted anywhere, and is taken away when the next
one starts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from volfs.linux.durable import DIRECTORY, REACH, opened, scanned
from volfs.linux.identity import Identity
from volfs.linux.mountinfo import Mount, MountTable
from volfs.store.table import Origin

FSTYPE = "fuse.volfs"
"""The filesystem type under which mountinfo shows a tree of volumes."""

_log = logging.getLogger(__name__)
_DIRECTORY = "trees"
_NAME = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{16})\.(\d+:\d+)\.[0-9a-f]{16}", re.ASCII)
_QUESTION_MAX = 1024
_ANSWER_MAX = 1 << 26
_ANSWER_TIME = 5.0
"""Seconds for which an answer is waited for, and for which one who asks is."""
_OUT_OF_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_PAUSE = 0.1
_UCRED = struct.Struct("iII")


class OpenFile(NamedTuple):
    """Something open in a tree: the daemon's number of it, its path from the tree's root, and the
    process that opened it (as the daemon sees it)."""

    number: int
    path: str
    pid: int
    command: str


Answer = Callable[[str], Iterable[OpenFile]]
"""Tells what is open of the volume of that name. Called in a thread of its own; may block."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree that was announced: ``device`` is "major:minor" as in mountinfo.

    ``pid`` is its daemon, 0 where that is in a pid namespace which we do not see, None when it
    has ended.
    """

    scope: str
    file: str
    device: str
    pid: int | None

    @property
    def is_own(self) -> bool:
        """Whether this process serves it."""
        return self.pid == os.getpid()

    def ask(self, name: str) -> list[OpenFile]:
        """Return what is open of a volume, none when the daemon has ended.

        Raises TimeoutError when it does not answer, OSError.
        """
        end = time.monotonic() + _ANSWER_TIME
        try:
            with opened(self.scope) as top, opened(_DIRECTORY, dir_fd=top) as directory:
                connection = _connect(self.file, directory)
        except FileNotFoundError:
            return []
        if connection is None:
            return []
        with connection:
            connection.sendall(name.encode())
            connection.shutdown(socket.SHUT_WR)
            answer = _read_all(connection, _ANSWER_MAX, end)
        return [OpenFile(*item) for item in json.loads(answer)] if answer else []


def trees_of(scope: str) -> list[Tree]:
    """Return the trees of a scope that were announced since the machine was booted.

    None where the scope cannot be looked at. May block as its filesystem does.
    """
    try:
        with opened(scope) as top, opened(_DIRECTORY, dir_fd=top) as directory:
            return _listed(scope, directory)
    except OSError:
        return []


def _listed(scope: str, directory: int) -> list[Tree]:
    _, boot = _here()
    with scanned(directory) as entries:
        names = sorted(entry.name for entry in entries)
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None or match[2] != boot:
            continue
        try:
            connection = _connect(name, directory)
        except FileNotFoundError:
            continue
        except OSError:
            found.append(Tree(scope, name, match[3], 0))  # too busy to be let in, and so alive
            continue
        pid = None
        if connection is not None:
            with connection:
                option = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            pid = _UCRED.unpack(option)[0]
        found.append(Tree(scope, name, match[3], pid))
    return found


def _connect(name: str, directory: int) -> socket.socket | None:
    """Connect to a tree's daemon, None when it has ended. Raises FileNotFoundError, OSError."""
    # By descriptor: whoever owns the scope could put a link to some other service there.
    fd = os.open(name, REACH, dir_fd=directory)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_ANSWER_TIME)
            connection.connect(f"/proc/self/fd/{fd}")
        except ConnectionRefusedError:
            connection.close()
            return None
        except BaseException:
            connection.close()
            raise
        return connection
    finally:
        os.close(fd)


def _read_all(connection: socket.socket, limit: int, end: float) -> bytes:
    pieces = []
    while limit > 0:
        connection.settimeout(max(end - time.monotonic(), 0.001))
        piece = connection.recv(min(limit, 1 << 16))
        if not piece:
            break
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


class Announcement:
    """This process's own tree, announced until ``close``."""

    def __init__(self, scope_fd: int, device: str, answer: Answer, identity: Identity) -> None:
        """Announce the tree of that device number in the scope. Raises OSError.

        What is made there is made as the scope's owner, who has to be able to look.
        """
        owner = os.fstat(scope_fd)
        self._answer = answer
        self._closing = False
        self._name = ".".join((*_here(), device, secrets.token_hex(8)))
        with identity.acting(owner.st_uid, owner.st_gid, 0o077), suppress(FileExistsError):
            os.mkdir(_DIRECTORY, 0o700, dir_fd=scope_fd)
        self._directory = os.open(_DIRECTORY, DIRECTORY, dir_fd=scope_fd)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A path of any length would not do: sun_path has 108 bytes.
            place = f"/proc/self/fd/{self._directory}/{self._name}"
            with identity.acting(owner.st_uid, owner.st_gid, 0o177):
                self._listener.bind(place)
            self._listener.listen(64)
        except BaseException:
            self._listener.close()
            os.close(self._directory)
            raise
        self._thread = threading.Thread(target=self._serve, name="volfs-tree", daemon=True)
        self._thread.start()

    def close(self, *, keep: bool) -> None:
        """Answer nobody any more. With ``keep`` the announcement stays: see the module."""
        self._closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        if not keep:
            with suppress(OSError):
                os.unlink(self._name, dir_fd=self._directory)
        os.close(self._directory)

    def _serve(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    time.sleep(_PAUSE)
                    continue
                return
            try:
                with connection:
                    self._reply(connection)
            except OSError:
                continue  # who asked has gone
            except Exception:  # noqa: BLE001 - whatever it is, the next one is answered
                _log.exception("what is open in the tree could not be told")

    def _reply(self, connection: socket.socket) -> None:
        name = _read_all(connection, _QUESTION_MAX, time.monotonic() + _ANSWER_TIME).decode()
        if name:
            connection.settimeout(_ANSWER_TIME)
            connection.sendall(json.dumps([*self._answer(name)]).encode())


def clear_announcements(scope_fd: int, mounted: Iterable[str]) -> None:
    """Take away what daemons announced that have ended, of trees that are gone with them.

    ``mounted`` are the devices of all trees of the scope that are mounted anywhere.
    """
    (host, boot), alive = _here(), set(mounted)
    with suppress(OSError), opened(_DIRECTORY, dir_fd=scope_fd) as directory:
        with scanned(directory) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None:
                continue
            if match[3] in alive if match[2] == boot else match[1] != host:
                continue
            with suppress(OSError):
                connection = _connect(name, directory)
                if connection is None:
                    os.unlink(name, dir_fd=directory)
                else:
                    connection.close()


def device_at(scope: str, target: str) -> str | None:
    """Return the device number of the tree that this process has just mounted at ``target``.

    ``scope`` and ``target`` are real paths. What somebody mounted on it since is passed over.
    None where our mount table does not show it.
    """
    at = {mount.id: mount for mount in MountTable.of_process() if mount.point == target}
    for mount in at.values():
        if says_to_be_tree(mount, scope) and mount.root == "/" and mount.parent not in at:
            return mount.device
    return None


def says_to_be_tree(mount: Mount, scope: str) -> bool:
    """Tell whether a mount calls itself a tree of ``scope`` (a real path): anybody's may."""
    return mount.fstype == FSTYPE and mount.source == scope


def _here() -> tuple[str, str]:
    """Return the names of this machine and of its boot."""
    here = Origin.here()
    host, boot = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (here.host, here.boot))
    return host, boot
