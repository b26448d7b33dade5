"""Appends and other writes to one open file of a network filesystem, each by its own descriptor."""

from __future__ import annotations

import errno
import os
import threading
from typing import TypeVar

import pytest
import trio

from tests.conftest import open_descriptors
from tests.fs.conftest import Filesystem
from volfs.fs.requests import Later
from volfs.linux.syscalls import os_error

T = TypeVar("T")

WAYS = [os.O_RDWR, os.O_RDWR | os.O_APPEND]


@pytest.fixture
def slow(fs: Filesystem) -> Filesystem:
    """A scope on a network filesystem."""
    fs.root_inode.device.slow = True
    return fs


async def result(answer: T | Later[T]) -> T:
    return await answer() if isinstance(answer, Later) else answer


async def write(fs: Filesystem, handle: int, offset: int, data: bytes, *, append: bool) -> None:
    """A write of which the kernel says whether it is an append."""
    assert await result(fs.requests.files.write(handle, offset, data, append)) == len(data)


async def opened(fs: Filesystem, flags: int) -> tuple[int, int]:
    """The node id and handle of a file that is opened so."""
    top, _ = fs.volume()
    node = (await fs.create(top, b"f", b"content")).st_ino
    return node, await fs.open(node, flags)


@pytest.mark.parametrize("flags", WAYS)
async def test_both_descriptors_are_counted_and_closed(slow: Filesystem, flags: int) -> None:
    node, handle = await opened(slow, flags)
    handles = slow.requests.handles
    before = open_descriptors(), handles.used
    for _ in range(3):
        await write(slow, handle, 0, b", more", append=True)
        await write(slow, handle, 0, b"CON", append=False)
    assert (open_descriptors(), handles.used) == (before[0] + 1, before[1] + 1)
    assert await slow.content(node) == b"CONtent" + b", more" * 3
    await result(slow.requests.files.release(handle))
    assert (open_descriptors(), handles.used) == (before[0] - 1, before[1] - 1)


@pytest.mark.parametrize("flags", WAYS)
async def test_two_threads_that_need_the_second_keep_one(
    slow: Filesystem, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    node, handle = await opened(slow, flags)
    before = open_descriptors()
    both = threading.Barrier(2)
    real = slow.parts.opening.open_again

    def open_again(*arguments: object) -> int:
        fd = real(*arguments)  # type: ignore[arg-type]
        both.wait(20)
        return fd

    monkeypatch.setattr(slow.parts.opening, "open_again", open_again)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(_write_otherwise, slow, handle, flags)
    assert open_descriptors() == before + 1
    await result(slow.requests.files.release(handle))
    assert open_descriptors() == before - 1
    assert await slow.content(node) == (b"CONtent" if flags & os.O_APPEND else b"contentCONCON")


async def _write_otherwise(fs: Filesystem, handle: int, flags: int) -> None:
    """Append where the file was not opened for that, and the reverse."""
    await write(fs, handle, 0, b"CON", append=not flags & os.O_APPEND)


@pytest.mark.parametrize("flags", WAYS)
async def test_what_could_not_be_written_by_either_is_told_at_close(
    slow: Filesystem, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    _, handle = await opened(slow, flags)
    await write(slow, handle, 0, b", more", append=True)
    await write(slow, handle, 0, b"CON", append=False)
    descriptors = slow.requests.handles.file(handle).descriptors
    assert len(descriptors) == 2
    for failing in descriptors:
        closed: list[int] = []

        def dup(fd: int, failing: int = failing, closed: list[int] = closed) -> int:
            closed.append(fd)
            if fd == failing:  # as closing the duplicate would
                raise os_error(errno.EDQUOT)
            return os.open(os.devnull, os.O_RDONLY)

        with monkeypatch.context() as patch, pytest.raises(OSError) as raised:
            patch.setattr(os, "dup", dup)
            await result(slow.requests.files.flush(handle))
        assert raised.value.errno == errno.EDQUOT
        assert sorted(closed) == sorted(descriptors)
    await result(slow.requests.files.flush(handle))
    await result(slow.requests.files.release(handle))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOENT])
async def test_a_file_that_is_not_found_again_is_appended_to(
    slow: Filesystem, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As GlusterFS answers of one that has no name any more."""
    node, handle = await opened(slow, os.O_RDWR)

    def not_found(*_: object) -> int:
        raise os_error(number)

    monkeypatch.setattr(slow.parts.opening, "open_again", not_found)
    await write(slow, handle, 0, b", more", append=True)
    assert await slow.content(node) == b"content, more"
    await result(slow.requests.files.release(handle))


@pytest.mark.parametrize(
    ("flags", "number"),
    [(os.O_RDWR, errno.EACCES), (os.O_RDWR | os.O_APPEND, errno.ESTALE)],
    ids=["appended to", "written at an offset"],
)
async def test_what_would_go_to_a_wrong_place_is_not_written(
    slow: Filesystem, monkeypatch: pytest.MonkeyPatch, flags: int, number: int
) -> None:
    node, handle = await opened(slow, flags)

    def refuse(*_: object) -> int:
        raise os_error(number)

    monkeypatch.setattr(slow.parts.opening, "open_again", refuse)
    with pytest.raises(OSError) as raised:
        await _write_otherwise(slow, handle, flags)
    assert raised.value.errno == number
    assert await slow.content(node) == b"content"
    await result(slow.requests.files.release(handle))


@pytest.mark.parametrize("flags", WAYS)
async def test_on_a_local_filesystem_one_descriptor_does(fs: Filesystem, flags: int) -> None:
    node, handle = await opened(fs, flags)
    before = open_descriptors()
    await write(fs, handle, 0, b", more", append=True)
    await write(fs, handle, 0, b"CON", append=False)
    assert open_descriptors() == before
    assert await fs.content(node) == b"CONtent, more"
    await result(fs.requests.files.release(handle))
