"""The generator's calls on what is in open files."""

from __future__ import annotations

import mmap
import os
from functools import partial

from tests.mount.likeness.calls import Call
from tests.mount.likeness.choosing import DIR, MOST_MAPPINGS, REG, Chooser, Draft
from tests.mount.likeness.world import Mapping, Opened

RWF_HIPRI, RWF_DSYNC, RWF_SYNC, RWF_NOWAIT, RWF_APPEND, RWF_NOAPPEND = 1, 2, 4, 8, 16, 32
RWF_ATOMIC, RWF_DONTCACHE = 0x40, 0x80

KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64

_PAGE = 4096


class DataCalls:
    """Each public method drafts a call of a user, or None if there is nothing to do it on."""

    def __init__(self, chooser: Chooser, *, within: bool) -> None:
        """``within``: nothing is written to mappings past the end of the file."""
        self._within = within
        self._choose = chooser
        self._world = chooser.world

    def _aligned(self, opened: Opened, value: int) -> int:
        """For O_DIRECT mostly whole blocks."""
        if opened.flags & os.O_DIRECT and self._choose.chance(0.8):
            return (value + 511) // _PAGE * _PAGE
        return value

    # -- reading

    def read(self, user: int) -> Draft | None:
        choose = self._choose
        found = choose.reading(user)
        if found is None:
            return None
        slot, opened = found
        size = self._aligned(opened, choose.length())
        offset = self._aligned(opened, choose.offset())
        way = choose.random.random()
        if way < 0.4:
            return Draft(user, ("read", slot, size), opened=opened)
        if way < 0.7:
            return Draft(user, ("pread", slot, size, offset), opened=opened)
        if way < 0.85:
            sizes = tuple(self._aligned(opened, choose.length()) for _ in range(3))
            if sum(sizes) > 1 << 17:
                return None
            return Draft(user, ("readv", slot, sizes), opened=opened)
        flags = choose.one((0, 0, RWF_HIPRI))
        offset = choose.one((-1, offset))
        return Draft(user, ("preadv2", slot, size, offset, flags), opened=opened)

    def read_special(self, user: int) -> Draft | None:
        """A FIFO, a device, or a directory."""
        found = self._choose.slot(user, lambda opened: opened.kind != REG)
        if found is None:
            return None
        slot, opened = found
        if opened.kind == DIR:
            return Draft(user, ("pread", slot, 16, 0), opened=opened)
        if self._choose.chance(0.5):
            return Draft(user, ("write", slot, self._choose.fresh(), 10), opened=opened)
        return Draft(user, ("read", slot, 16), opened=opened)

    def lseek(self, user: int) -> Draft | None:
        choose = self._choose
        found = choose.slot(user, lambda opened: opened.kind == REG and not opened.only_path)
        if found is None:
            return None
        whence = choose.one((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE))
        offset = choose.offset()
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            offset = choose.one((0, 0, 0, 0, 1, 10, 4096, offset))
        if choose.chance(0.02):
            whence = 5
        return Draft(user, ("lseek", found[0], offset, whence), opened=found[1])

    # -- writing

    def write(self, user: int) -> Draft | None:
        choose = self._choose
        found = choose.writing(user)
        if found is None:
            return None
        slot, opened = found
        length = self._aligned(opened, choose.length())
        offset = self._aligned(opened, choose.offset())
        way = choose.random.random()
        if way < 0.4:
            return Draft(user, ("write", slot, choose.fresh(), length), opened=opened)
        if way < 0.7:
            return Draft(user, ("pwrite", slot, choose.fresh(), length, offset), opened=opened)
        if way < 0.8:
            sizes = tuple(self._aligned(opened, choose.length()) for _ in range(3))
            if sum(sizes) > 1 << 17:
                return None
            return Draft(user, ("writev", slot, choose.fresh(), sizes), opened=opened)
        flags = choose.one(
            (0, 0, RWF_DSYNC, RWF_SYNC, RWF_APPEND, RWF_APPEND, RWF_NOAPPEND, RWF_NOAPPEND)
        )
        if choose.chance(0.05):
            flags = choose.one(
                (RWF_HIPRI, RWF_APPEND | RWF_NOAPPEND, RWF_ATOMIC, RWF_DONTCACHE, 256)
            )
        offset = choose.one((-1, offset))
        call = ("pwritev2", slot, choose.fresh(), length, offset, flags)
        return Draft(user, call, opened=opened)

    def transfer(self, user: int) -> Draft | None:
        """From one open file to another, or within one."""
        choose = self._choose
        source, target = choose.reading(user), choose.writing(user)
        if source is None or target is None:
            return None
        way = choose.random.random()
        length, offset = choose.length(), choose.one((None, choose.offset()))
        call: Call
        if way < 0.4:
            target_offset = choose.one((None, choose.offset()))
            call = ("copy_file_range", source[0], offset, target[0], target_offset, length)
        elif way < 0.8:
            call = ("sendfile", target[0], source[0], offset, length)
        else:
            call = ("splice", source[0], offset, target[0], length)
        return Draft(user, call, opened=target[1], other=source[1])

    def fallocate(self, user: int) -> Draft | None:
        choose = self._choose
        found = choose.writing(user)
        if found is None:
            return None
        mode = choose.one((0, 0, KEEP, KEEP | PUNCH, KEEP | PUNCH, ZERO, ZERO | KEEP))
        if choose.chance(0.2):
            mode = choose.one(
                (COLLAPSE, INSERT, PUNCH, UNSHARE, UNSHARE | KEEP, 128, COLLAPSE | KEEP)
            )
        offset, length = choose.offset(), choose.length()
        if mode in (COLLAPSE, INSERT) and choose.chance(0.8):
            offset, length = offset // _PAGE * _PAGE, max(length // _PAGE, 1) * _PAGE
        if offset + length > 1 << 26 and not mode & PUNCH and choose.chance(0.9):
            return None
        slot, opened = found
        noted = partial(self._world.reserved.add, opened.inode)
        return Draft(user, ("fallocate", slot, mode, offset, length), opened=opened, at_once=noted)

    def sync(self, user: int) -> Draft | None:
        choose = self._choose
        found = choose.slot(user, lambda opened: not opened.only_path and opened.kind in (REG, DIR))
        if found is None:
            return None
        slot, opened = found
        offset, length = choose.offset(), choose.length()
        calls: list[Call] = [("fsync", slot), ("fdatasync", slot)]
        if opened.kind == REG:
            calls.append(("sync_file_range", slot, offset, length, choose.one((2, 7, 0, 8))))
            calls.append(("fadvise", slot, offset, length, choose.random.randrange(7)))
            calls.append(("readahead", slot, offset, length))
        return Draft(user, choose.one(calls), opened=opened)

    # -- mappings

    def mmap(self, user: int) -> Draft | None:
        choose, person = self._choose, self._world.people[user]
        if len(person.mappings) >= MOST_MAPPINGS:
            return None
        found = choose.slot(user, lambda opened: opened.reads and opened.kind == REG)
        if found is None:
            return None
        slot, opened = found
        number = min(set(range(1, MOST_MAPPINGS + 2)) - person.mappings.keys())
        flags = choose.one((mmap.MAP_SHARED, mmap.MAP_SHARED, mmap.MAP_PRIVATE))
        how = mmap.PROT_READ
        if (opened.writes or flags == mmap.MAP_PRIVATE or choose.chance(0.1)) and choose.chance(
            0.7
        ):
            how |= mmap.PROT_WRITE
        offset = choose.one((0, 0, 0, _PAGE, 1))
        length = choose.one((1, 100, _PAGE, 3 * _PAGE, 100_000))
        call = ("mmap", number, slot, how, flags, offset, length)
        noted = Mapping(opened, how, flags, length)
        return Draft(
            user, call, opened=opened, effect=partial(person.mappings.__setitem__, number, noted)
        )

    def peek(self, user: int) -> Draft | None:
        choose = self._choose
        found = choose.mapping(user, lambda mapping: True)
        if found is None:
            return None
        number, mapping = found
        offset, length = self._part(mapping)
        return Draft(user, ("peek", number, offset, length), opened=mapping.opened)

    def poke(self, user: int) -> Draft | None:
        choose = self._choose
        found = choose.mapping(user, lambda mapping: bool(mapping.how & mmap.PROT_WRITE))
        if found is None:
            return None
        number, mapping = found
        offset, length = self._part(mapping)
        call = ("poke", number, offset, choose.fresh(), length, self._within)
        return Draft(user, call, opened=mapping.opened)

    def _part(self, mapping: Mapping) -> tuple[int, int]:
        choose = self._choose
        offset = choose.one((0, 0, 0, 10, _PAGE - 5, _PAGE, 2 * _PAGE))
        length = choose.one((1, 10, 100, _PAGE))
        if offset + length > mapping.length:
            offset, length = 0, min(length, mapping.length)
        return offset, length

    def msync(self, user: int) -> Draft | None:
        found = self._choose.mapping(user, lambda mapping: True)
        if found is None:
            return None
        call = ("msync", found[0], self._choose.one((1, 2, 4, 4)))
        return Draft(user, call, opened=found[1].opened)

    def munmap(self, user: int) -> Draft | None:
        found = self._choose.mapping(user, lambda mapping: True)
        if found is None:
            return None
        forget = partial(self._world.people[user].mappings.pop, found[0], None)
        return Draft(user, ("munmap", found[0]), opened=found[1].opened, effect=forget)

    # -- flags

    def getfl(self, user: int) -> Draft | None:
        found = self._choose.slot(user)
        return found and Draft(user, ("getfl", found[0]), opened=found[1])

    def setfl(self, user: int) -> Draft | None:
        choose = self._choose
        found = choose.slot(user, lambda opened: not opened.only_path and opened.kind == REG)
        if found is None:
            return None
        slot, opened = found
        flags = choose.one((0, 0, os.O_APPEND, os.O_APPEND, os.O_NOATIME, os.O_DIRECT))

        def noted() -> None:
            opened.flags &= ~(os.O_APPEND | os.O_NOATIME | os.O_DIRECT)
            opened.flags |= flags

        return Draft(user, ("setfl", slot, flags), opened=opened, at_once=noted)
