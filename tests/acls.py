"""POSIX ACLs as the kernel's extended attributes hold them (linux/posix_acl_xattr.h)."""

from __future__ import annotations

import struct
from functools import reduce
from operator import or_

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"

_VERSION = 2
_NOBODY = 0xFFFFFFFF
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


def acl(
    owner: int,
    group: int,
    other: int,
    *,
    users: dict[int, int] | None = None,
    groups: dict[int, int] | None = None,
    mask: int | None = None,
) -> bytes:
    """The attribute's value; all numbers are permissions from 0 to 7, by uid and gid."""
    entries = [(_USER_OBJ, owner, _NOBODY)]
    entries += [(_USER, permissions, uid) for uid, permissions in (users or {}).items()]
    entries += [(_GROUP_OBJ, group, _NOBODY)]
    entries += [(_GROUP, permissions, gid) for gid, permissions in (groups or {}).items()]
    if mask is not None:
        entries.append((_MASK, mask, _NOBODY))
    entries.append((_OTHER, other, _NOBODY))
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def rights(value: bytes, group: int, uid: int, groups: set[int]) -> int:
    """What an ACL of a file of ``group`` gives to a user who does not own it, from 0 to 7.

    (Of several groups the sum, where the kernel asks whether one gives all that is wanted.)
    """
    given: dict[tuple[int, int], int] = {}
    for tag, granted, number in struct.iter_unpack("<HHI", value[4:]):
        given[tag, group if tag == _GROUP_OBJ else number] = granted
    mask = given.get((_MASK, _NOBODY), 7)
    if (_USER, uid) in given:
        return given[_USER, uid] & mask
    of_groups = [
        granted
        for (tag, number), granted in given.items()
        if tag in (_GROUP_OBJ, _GROUP) and number in groups
    ]
    if of_groups:
        return reduce(or_, of_groups) & mask
    return given[_OTHER, _NOBODY]
