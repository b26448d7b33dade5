"""Asking for a Status, of the extension and of the os module."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fs.native.records import BASIC, FIELDS, LONGEST, Opened, failing
from volfs.fs import native
from volfs.fs.native import Status, _records
from volfs.fs.native.status import FromOs

pytestmark = pytest.mark.any_level


class Asking(NamedTuple):
    fstat: Callable[[int], Status]
    fstatat: Callable[[int, bytes], Status]
    open_path: Callable[[int, bytes], tuple[int, Status] | None]


@pytest.fixture(params=["C", "os"])
def asking(request: pytest.FixtureRequest) -> Asking:
    if request.param == "C":
        return Asking(_records.fstat, _records.fstatat, _records.open_path)
    return Asking(FromOs.fstat, FromOs.fstatat, FromOs.open_path)


def test_the_extension_is_used_where_it_is(zoo: Path, opened: Opened) -> None:
    assert isinstance(native.fstat(opened(zoo)), _records.Status)


def test_status_is_what_os_says(asking: Asking, zoo: Path, opened: Opened) -> None:
    directory = opened(zoo)
    for path in zoo.iterdir():
        name = os.fsencode(path.name)
        expected = [getattr(path.lstat(), field) for field in FIELDS]
        found = asking.open_path(directory, name)
        assert found is not None
        fd, status = found
        try:
            for one in (status, asking.fstat(fd), asking.fstatat(directory, name)):
                assert [getattr(one, field) for field in FIELDS] == expected, path
        finally:
            os.close(fd)


def test_opened_path_is_for_nothing_else(asking: Asking, zoo: Path, opened: Opened) -> None:
    found = asking.open_path(opened(zoo), b"symlink")
    assert found is not None
    fd, status = found
    try:
        assert stat.S_ISLNK(status.st_mode)
        assert not os.get_inheritable(fd)
        failing(errno.EBADF, lambda: os.read(fd, 1))
    finally:
        os.close(fd)


def test_absent_name(asking: Asking, zoo: Path, opened: Opened) -> None:
    directory = opened(zoo)
    assert asking.open_path(directory, b"absent") is None
    failing(errno.ENOENT, lambda: asking.fstatat(directory, b"absent"))


def test_errors_of_asking(asking: Asking, zoo: Path, opened: Opened) -> None:
    file, directory = opened(zoo / "file"), opened(zoo)
    failing(errno.ENOTDIR, lambda: asking.open_path(file, b"x"))
    failing(errno.ENOTDIR, lambda: asking.fstatat(file, b"x"))
    failing(errno.ENAMETOOLONG, lambda: asking.open_path(directory, LONGEST + b"n"))
    with pytest.raises(ValueError, match="null"):
        asking.open_path(directory, b"fi\0le")


def test_a_name_is_bytes(zoo: Path, opened: Opened) -> None:
    for call in (_records.fstatat, _records.open_path):
        with pytest.raises(TypeError):
            call(opened(zoo), "file")  # type: ignore[arg-type]


def test_status_cannot_be_changed_or_made(zoo: Path, opened: Opened) -> None:
    status = _records.fstat(opened(zoo))
    with pytest.raises(AttributeError):
        status.st_mode = 0  # type: ignore[misc]
    with pytest.raises(TypeError):
        _records.Status()


@pytest.mark.parametrize("where", [-1, -100, 2**31 - 1, 2**32])
def test_bad_descriptor(zoo: Path, opened: Opened, where: int) -> None:
    # 2**32 + fd must not be taken for fd.
    fd = where + opened(zoo) if where == 2**32 else where
    calls: list[Callable[[], object]] = [
        lambda: _records.fstat(fd),
        lambda: _records.fstatat(fd, b"file"),
        lambda: _records.open_path(fd, b"file"),
        lambda: _records.statx_out(fd, 0, BASIC, 1, 0),
        lambda: _records.list_bare(fd, 0, 4096, False, 0, 1, 1),
        lambda: _records.read_entries(fd, 0, 1),
    ]
    for call in calls:
        failing(errno.EBADF, call)
