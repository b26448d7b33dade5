"""Executor: does the steps of one user in one process, and says what came of each."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from tests.mount.likeness.attributes import Attributes
from tests.mount.likeness.calls import PARENT, TARGET, Call, Outcome, Place
from tests.mount.likeness.data import Data
from tests.mount.likeness.locking import Locking
from tests.mount.likeness.looks import Look, everything, look, unflag
from tests.mount.likeness.names import Names
from tests.mount.likeness.slots import Slots

# Where in a call's arguments that stands what is looked at afterwards.
_LOOKED_AT: dict[str, tuple[int, ...]] = {
    "rename": (1, 2),
    "link": (1, 2),
    "symlink": (2,),
    "copy_file_range": (1, 3),
    "sendfile": (1, 2),
    "splice": (1, 3),
    "dup": (2,),
    **dict.fromkeys(("mmap",), (2,)),
    **dict.fromkeys(("peek", "poke", "msync", "munmap", "umask", "close", "give"), ()),
}


class Executor:
    """Does calls by their names."""

    def __init__(self, user: int, inboxes: Sequence[tuple[socket.socket, socket.socket]]) -> None:
        self._slots = Slots(user, inboxes)
        self._data = Data(self._slots)
        self._calls: dict[str, Callable[..., Any]] = {}
        rooms = (self._slots, self._data, Locking(self._slots), Names(self._slots))
        for room in (*rooms, Attributes(self._slots)):
            for name in dir(type(room)):
                if not name.startswith("_"):
                    self._calls[name] = getattr(room, name)
        self._calls["stat"] = self.stat

    def enter(self, top: bytes) -> None:
        """Close everything and begin at ``top``."""
        self._data.empty()
        self._slots.empty()
        self._slots.top = top
        os.chdir(top)
        os.umask(0o022)

    def leave(self) -> None:
        """Close everything and go."""
        self._data.empty()
        self._slots.empty()
        os.chdir("/")

    def unflag(self, top: bytes) -> None:
        unflag(top)

    def everything(self, top: bytes) -> Any:
        return everything(top)

    def do(self, looking: int, call: Call) -> Outcome:
        name, *arguments = call
        value, error = None, 0
        try:
            value = self._calls[name](*arguments)
        except OSError as failure:
            error = failure.errno or -1
        seen = tuple(self._looks(looking, call)) if looking else ()
        return error, value, seen

    def stat(self, place: Place, follow: bool) -> None:
        """Only looks, as every call can afterwards; this one follows links."""
        path, directory = self._slots.at(place)
        if isinstance(path, int):
            os.fstat(path)
        else:
            os.stat(path, dir_fd=directory, follow_symlinks=follow)

    def _looks(self, looking: int, call: Call) -> Any:
        for index in _LOOKED_AT.get(call[0], (1,)):
            place = call[index]
            if looking & TARGET:
                yield self._look(place)
            if looking & PARENT and not isinstance(place, int):
                yield self._look(_parent(place))

    def _look(self, place: Place) -> Any:
        try:
            if isinstance(place, int):
                return self._descriptor(self._slots.fd(place))
            if isinstance(place, tuple) and place[1] is None:
                return self._descriptor(self._slots.fd(place[0]))
            path, directory = self._slots.at(place)
            return look(os.stat(path, dir_fd=directory, follow_symlinks=False))
        except OSError as error:
            return error.errno

    def _descriptor(self, fd: int) -> Look:
        """An open file, and where in it the next byte is read or written."""
        status = os.fstat(fd)
        position = -1
        if stat.S_ISREG(status.st_mode):
            with suppress(OSError):  # O_PATH
                position = os.lseek(fd, 0, os.SEEK_CUR)
        return look(status, position)


def _parent(place: Any) -> Place:
    if isinstance(place, bytes):
        return os.path.dirname(place.rstrip(b"/")) or (b"/" if place.startswith(b"/") else b".")
    slot, name = place
    return slot if name is None else (slot, os.path.dirname(name.rstrip(b"/")) or b".")
