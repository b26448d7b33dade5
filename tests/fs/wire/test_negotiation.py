"""The INIT reply: what is asked for, and only of what is offered."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from volfs.fs.agreement import Agreement
from volfs.fs.wire.negotiation import Flag, Wishes, negotiate

EXT4 = 0xEF53
DEVICE = 7
OVERLAYFS = 0x794C7630
EVERYTHING = (1 << 64) - 1
LIBFUSE = Flag.SETXATTR_EXT | Flag.READDIRPLUS_AUTO | Flag.EXPLICIT_INVAL_DATA
"""Flags that must go, as if libfuse had asked for them."""


def request(offered: int) -> bytes:
    return struct.pack("=IIII", 7, 45, 131072, offered & 0xFFFFFFFF) + struct.pack(
        "=I44x", offered >> 32
    )


def answer(offered: int, **wishes: Any) -> tuple[Flag, int, bytes, Agreement]:
    """Flags and stack depth of the reply, all of it, and what was agreed."""
    reply = bytearray(64)
    struct.pack_into("=III", reply, 0, 7, 45, 131072)
    struct.pack_into("=IHHIIH", reply, 12, LIBFUSE, 12, 9, 1 << 20, 1, 256)
    asked = {"filesystem": EXT4, "caches": True, "lists_by_inode": False}
    wanted = Wishes(**{**asked, **wishes})
    new, agreed = negotiate(request(offered), bytes(reply), wanted, device=DEVICE)
    low, high, depth = struct.unpack_from("=I16xII", new, 12)
    return Flag(low | high << 32), depth, new, agreed


def test_all_that_is_offered_and_useful() -> None:
    flags, depth, reply, agreed = answer(EVERYTHING)
    for flag in (
        *(Flag.PASSTHROUGH, Flag.HANDLE_KILLPRIV_V2, Flag.PARALLEL_DIROPS, Flag.CACHE_SYMLINKS),
        *(Flag.POSIX_ACL, Flag.DONT_MASK, Flag.DIRECT_IO_ALLOW_MMAP, Flag.AUTO_INVAL_DATA),
        *(Flag.POSIX_LOCKS, Flag.FLOCK_LOCKS, Flag.READDIRPLUS, Flag.INIT_EXT),
        Flag.ALLOW_IDMAP,
    ):
        assert flags & flag, flag
    assert not flags & LIBFUSE
    assert depth == 1
    assert agreed == Agreement(
        device=DEVICE,
        lists_by_inode=False,
        maps_direct=True,
        says_when_to_clear=True,
        passthrough=True,
        why_not="",
        max_write=1 << 20,
    )
    assert agreed.tapped
    assert len(reply) == 64
    # What libfuse has settled stays: protocol, reading ahead, largest write, granularity, pages.
    assert struct.unpack_from("=III", reply) == (7, 45, 131072)
    assert struct.unpack_from("=IIH", reply, 20) == (1 << 20, 1, 256)


def test_nothing_that_is_not_offered() -> None:
    flags, depth, _, agreed = answer(0)
    assert flags == 0
    assert depth == 0
    assert not agreed.passthrough
    assert not agreed.says_when_to_clear
    assert "6.9" in agreed.why_not


def test_a_kernel_with_one_word_of_flags() -> None:
    """The second word counts only with INIT_EXT."""
    flags, _, _, agreed = answer(EVERYTHING & ~Flag.INIT_EXT)
    assert flags >> 32 == 0
    assert flags & Flag.HANDLE_KILLPRIV_V2
    assert not agreed.passthrough


def test_another_layer_for_an_overlay() -> None:
    assert answer(EVERYTHING, filesystem=OVERLAYFS)[1] == 2


def test_without_passthrough() -> None:
    flags, depth, _, agreed = answer(EVERYTHING, why_not="not wanted")
    assert not flags & Flag.PASSTHROUGH
    assert depth == 0
    assert not agreed.passthrough
    assert agreed.why_not == "not wanted"


@pytest.mark.parametrize("caches", [True, False])
def test_what_may_be_kept(caches: bool) -> None:
    flags = answer(EVERYTHING, caches=caches)[0]
    assert bool(flags & Flag.CACHE_SYMLINKS) == caches
    assert bool(flags & Flag.READDIRPLUS) == caches


def test_listing_by_inode() -> None:
    assert answer(EVERYTHING, lists_by_inode=True)[3].lists_by_inode
    assert not answer(EVERYTHING & ~Flag.NO_OPENDIR_SUPPORT, lists_by_inode=True)[3].lists_by_inode
