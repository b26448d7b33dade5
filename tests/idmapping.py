"""Idmapped bind mounts: the owners in a directory as somebody else sees them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.children import Child
from volfs.linux import syscalls

CLONE_NEWUSER = 0x1000_0000
MOUNT_ATTR_IDMAP = 0x0010_0000
AT_EMPTY_PATH = 0x1000
MOVE_MOUNT_F_EMPTY_PATH = 4
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def _call(number: int, *arguments: object) -> None:
    if _libc.syscall(ctypes.c_long(number), *arguments) != 0:
        raise syscalls.os_error(ctypes.get_errno())


@contextmanager
def process_in_user_namespace() -> Iterator[int]:
    """The id of a process in a user namespace of its own, in which no ids are mapped yet."""
    going, go = os.pipe()
    ready, told = os.pipe()

    def work() -> None:
        syscalls.unshare(CLONE_NEWUSER)
        os.write(told, b"x")
        os.read(going, 1)

    try:
        with Child(work) as child:
            assert os.read(ready, 1)
            yield child.pid
            os.write(go, b"x")
            child.result()
    finally:
        for end in (going, go, ready, told):
            os.close(end)


@contextmanager
def user_namespace(first: int, count: int) -> Iterator[int]:
    """A descriptor of a user namespace in which ids from 0 on are those from ``first`` on."""
    with process_in_user_namespace() as pid:
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{kind}").write_text(f"0 {first} {count}\n")
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def idmapped(source: Path, target: Path, first: int, count: int = 65536) -> Iterator[Path]:
    """``source`` at ``target``, where an owner N in ``source`` is ``first`` + N.

    Raises OSError(EINVAL) where the filesystem does not allow it.
    """
    with user_namespace(first, count) as namespace:
        directory = os.open(source, os.O_PATH)
        clone = syscalls.open_tree_clone(directory)
        os.close(directory)
        try:
            attributes = _MountAttr(MOUNT_ATTR_IDMAP, 0, 0, namespace)
            size = ctypes.c_size_t(ctypes.sizeof(attributes))
            _call(
                _SYS_MOUNT_SETATTR,
                ctypes.c_int(clone),
                b"",
                ctypes.c_uint(AT_EMPTY_PATH),
                ctypes.byref(attributes),
                size,
            )
            target.mkdir()
            _call(
                _SYS_MOVE_MOUNT,
                ctypes.c_int(clone),
                b"",
                ctypes.c_int(-100),
                os.fsencode(target),
                ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
            )
        finally:
            os.close(clone)
    try:
        yield target
    finally:
        syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)
        target.rmdir()
