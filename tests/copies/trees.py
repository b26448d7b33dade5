"""Trees with all that a directory can hold, and what is to be seen of them."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from tests.acls import ACCESS, DEFAULT, acl

ODD_NAMES = [b"\xff\xfe", b"a\nb", b" ", b"-rf", "käse 🧀".encode(), b"x" * 255, b"back\\slash"]
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw=ep, revision 2
THEN = 1_234_567_890_123_456_789


class Seen(NamedTuple):
    """What is to be seen of one file."""

    kind: str
    mode: int
    owner: tuple[int, int]
    modified: int
    device: int
    size: int
    sparse: bool
    content: str
    attributes: dict[str, bytes]
    names: frozenset[str]


def make_tree(top: Path, *, sockets: bool = True) -> None:
    """Fill a directory with all kinds of files, as far as who runs this may."""
    root = os.geteuid() == 0
    (top / "empty").touch()
    (top / "text").write_text("hello")
    (top / "data").write_bytes(os.urandom(3 << 20))
    with (top / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"in the middle")
        file.truncate(20 << 20)
    with (top / "hole").open("wb") as file:
        file.truncate(1 << 30)
    (top / "dir" / "deeper").mkdir(parents=True)
    os.link(top / "data", top / "dir" / "data too")
    os.link(top / "data", top / "dir" / "deeper" / "data three")
    (top / "dir" / "to file").symlink_to("../text")
    (top / "dir" / "nowhere").symlink_to("/does/not/exist")
    (top / "dir" / "up").symlink_to("../../..")
    os.link(top / "dir" / "nowhere", top / "nowhere too", follow_symlinks=False)
    os.mkfifo(top / "fifo", 0o620)
    if sockets:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(top / "socket"))
    for name in ODD_NAMES:
        (top / "dir" / os.fsdecode(name)).write_bytes(name)
    (top / os.fsdecode(b"dir \xff")).mkdir()
    (top / os.fsdecode(b"dir \xff") / "file").write_text("x")
    os.setxattr(top / "text", "user.note", b"\0\xff")
    os.setxattr(top / "dir", "user.note", b"of a directory")
    os.setxattr(top, "user.note", b"of the top")
    # What is made in there inherits one; neither of these two has any.
    (top / "shared" / "below").mkdir(parents=True)
    (top / "shared" / "file").touch()
    os.setxattr(top / "shared", DEFAULT, acl(7, 5, 0, users={1: 7}, mask=7))
    os.setxattr(top / "text", ACCESS, acl(6, 4, 0, users={1: 6, 4321: 7}, groups={2: 4}, mask=6))
    (top / "dir").chmod(0o2751)
    (top / "dir" / "deeper").chmod(0o1777)
    (top / "empty").chmod(0o400)
    if root:
        os.mknod(top / "null", 0o640 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(top / "disk", 0o600 | stat.S_IFBLK, os.makedev(250, 77))
        os.setxattr(top / "text", "trusted.note", b"t")
        os.setxattr(top / "dir" / "up", "trusted.note", b"of a link", follow_symlinks=False)
        os.setxattr(top / "null", "trusted.note", b"of a device")
        os.chown(top / "dir" / "up", 7, 8, follow_symlinks=False)
        os.chown(top / "fifo", 9, 10)
        os.chown(top / "dir", 1000, 1001)
        (top / "program").write_text("#!/bin/sh\n")
        os.chown(top / "program", 1234567, 7654321)
        (top / "program").chmod(0o6755)
        (top / "ping").write_text("#!/bin/sh\n")
        (top / "ping").chmod(0o755)
        os.setxattr(top / "ping", "security.capability", CAPABILITY)
    (top / "locked").mkdir()
    (top / "locked" / "file").touch()
    (top / "locked").chmod(0o500)
    for number, (directory, names, files) in enumerate(os.walk(top, topdown=False)):
        for entry in (*names, *files):
            then = THEN + number * 1_000_000_007
            os.utime(Path(directory, entry), ns=(then + 5, then), follow_symlinks=False)
    os.utime(top, ns=(THEN, THEN + 1))


def make_chain(top: Path, depth: int, *, files: bool = True) -> None:
    """Nest directories ``depth`` deep, far beyond PATH_MAX, with a file in each or nothing else."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        if files:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def depth_of(top: Path) -> int:
    """How deep a chain is, all levels of which have their file."""
    fd, depth = os.open(top, os.O_RDONLY | os.O_DIRECTORY), 0
    try:
        while os.listdir(fd):
            assert sorted(os.listdir(fd)) == ["d", "file"]
            inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd, depth = inner, depth + 1
    finally:
        os.close(fd)
    return depth


def seen(top: Path) -> dict[str, Seen]:
    """All there is in a tree, by path."""
    paths = [top]
    for directory, names, files in os.walk(top):
        paths += [Path(directory, name) for name in (*names, *files)]
    linked: dict[int, set[str]] = {}
    for path in paths:
        linked.setdefault(path.lstat().st_ino, set()).add(str(path.relative_to(top)))
    return {str(path.relative_to(top)): _look(path, linked) for path in paths}


def _look(path: Path, linked: dict[int, set[str]]) -> Seen:
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    is_file = kind == stat.S_IFREG
    content = ""
    if kind == stat.S_IFLNK:
        content = os.readlink(path)
    elif is_file and status.st_size < 1 << 29:  # a larger one is all hole
        content = hashlib.sha1(path.read_bytes()).hexdigest()
    attributes = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if not name.startswith("trusted.SGI_ACL_")  # the ACL once more, on XFS only
    }
    return Seen(
        stat.filemode(status.st_mode)[0],
        stat.S_IMODE(status.st_mode),
        (status.st_uid, status.st_gid),
        status.st_mtime_ns,
        status.st_rdev,
        status.st_size if is_file else 0,
        is_file and status.st_size > 1 << 20 and status.st_blocks * 512 < status.st_size // 2,
        content,
        attributes,
        frozenset(linked[status.st_ino]),
    )
