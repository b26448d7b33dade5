"""Filesystems made for a test, mounted where it says, and gone afterwards."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from tests.children import Child
from volfs.linux import syscalls

MS_RDONLY = 1
MS_REMOUNT = 32

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878

PATIENCE = 20.0
"""Seconds after which a frozen filesystem is thawed, so that nobody hangs for good."""
MS_BIND = 4096

_SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # which a user's PATH lacks
_PATIENCE = 5.0

_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_TOP_OF_HIERARCHIES = 0x20000


def program(name: str, package: str) -> str:
    """The path of a program, or the test is skipped."""
    found = shutil.which(name, path=_SBIN)
    if found is None:
        pytest.skip(f"{name} is missing (Debian package {package})")
    return found


@contextmanager
def unmounting(target: Path) -> Iterator[Path]:
    """Unmount ``target`` at the end. Nobody may use it then: who does fails the test."""
    try:
        yield target
    finally:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                syscalls.umount2(os.fsencode(target))
                break
            except OSError:
                if time.monotonic() > end:
                    syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)
                    raise
                time.sleep(0.02)


def scatter(directory: Path) -> None:
    """Have ext4 put what is made in this directory far from each other (``chattr +T``).

    Where it has no journal, it gives nobody the number of a file that was deleted in the last
    minutes, and for each new file looks through those nearby: after some hundred tests in one
    place that is a millisecond.
    """
    fd = os.open(directory, os.O_RDONLY)
    try:
        flags = bytearray(8)
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        number = int.from_bytes(flags[:4], sys.byteorder) | _TOP_OF_HIERARCHIES
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, number.to_bytes(4, sys.byteorder))
    except OSError:
        pass  # it is no ext4
    finally:
        os.close(fd)


@contextmanager
def tmpfs(target: Path, *, size: str = "64m") -> Iterator[Path]:
    """A filesystem in memory at ``target``, which is made."""
    target.mkdir()
    syscalls.mount(b"none", os.fsencode(target), b"tmpfs", 0, f"mode=755,size={size}".encode())
    with unmounting(target):
        yield target


@contextmanager
def ext4(
    target: Path, *, size: int, reserved: int = 0, inodes: int = 0, options: str = ""
) -> Iterator[Path]:
    """An ext4 of ``size`` bytes in a file beside ``target``; ``reserved``: per cent for root.

    ``inodes`` is about how many it has, 0 as many as usual.

    It is checked at the end.
    """
    image = target.with_name(target.name + ".image")
    make = [program("mkfs.ext4", "e2fsprogs"), "-q", "-F", "-b", "4096", "-m", str(reserved)]
    if inodes:
        make += ["-N", str(inodes)]
    with _looped(target, image, size, [*make, "-E", "lazy_itable_init=0"], options):
        yield target
    check = [program("e2fsck", "e2fsprogs"), "-f", "-n", str(image)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    image.unlink()


def xfs(target: Path) -> AbstractContextManager[Path]:
    """An XFS of the least size that there is, in a sparse file beside ``target``."""
    return _made_by(program("mkfs.xfs", "xfsprogs"), target)


def btrfs(target: Path) -> AbstractContextManager[Path]:
    """A btrfs in a sparse file beside ``target``."""
    return _made_by(program("mkfs.btrfs", "btrfs-progs"), target)


@contextmanager
def _made_by(mkfs: str, target: Path) -> Iterator[Path]:
    image = target.with_name(target.name + ".image")
    with _looped(target, image, 300 << 20, [mkfs, "-q", "-f"], ""):
        yield target
    image.unlink()


@contextmanager
def overlay(
    target: Path, layers: Path, *, lower: Path | None = None, options: str = ""
) -> Iterator[Path]:
    """An overlay at ``target``, writing to ``layers``/upper and work, which are made.

    Below is ``lower``, or an empty directory.
    """
    target.mkdir()
    if lower is None:
        lower = layers / "lower"
        lower.mkdir()
    for name in ("upper", "work"):
        (layers / name).mkdir()
    parts = [f"lowerdir={lower},upperdir={layers}/upper,workdir={layers}/work", options]
    data = ",".join(filter(None, parts)).encode()
    syscalls.mount(b"overlay", os.fsencode(target), b"overlay", 0, data)
    with unmounting(target):
        yield target


@contextmanager
def bound(source: Path, target: Path, *, read_only: bool = False) -> Iterator[Path]:
    """``source`` bind-mounted at ``target``, which exists."""
    syscalls.mount(os.fsencode(source), os.fsencode(target), b"", MS_BIND, b"")
    with unmounting(target):
        if read_only:
            flags = MS_BIND | MS_REMOUNT | MS_RDONLY
            syscalls.mount(b"", os.fsencode(target), b"", flags, b"")
        yield target


@contextmanager
def _looped(target: Path, image: Path, size: int, make: list[str], options: str) -> Iterator[Path]:
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("no loop devices on this machine")
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([*make, str(image)], check=True, capture_output=True)
    target.mkdir()
    # The loop device goes with the mount.
    loop = ",".join(filter(None, ("loop", options)))
    subprocess.run(["mount", "-o", loop, image, target], check=True, capture_output=True)
    with unmounting(target):
        yield target


def thaw(place: Path) -> None:
    """Thaw the filesystem that ``place`` is on, if it is frozen."""
    fd = os.open(place, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.ioctl(fd, FITHAW, 0)
    finally:
        os.close(fd)


@contextmanager
def frozen(place: Path) -> Iterator[None]:
    """The filesystem that ``place`` is on, frozen; thawed whatever happens, and whoever hangs."""

    def thaw_at_last() -> None:
        time.sleep(PATIENCE)
        thaw(place)

    fd = os.open(place, os.O_RDONLY)
    with Child(thaw_at_last):
        fcntl.ioctl(fd, FIFREEZE, 0)
        os.close(fd)
        try:
            yield
        finally:
            thaw(place)
