"""Copying a tree from path to path, as the tests do it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.children import needs_root
from volfs.copies import copy_tree
from volfs.linux.deletion import never
from volfs.volume import CopyReport

KINDS = [
    "disk",
    pytest.param("xfs", marks=needs_root),
    pytest.param("btrfs", marks=needs_root),
]
"""Filesystems, by how the fixture ``filesystems`` makes them."""


@contextmanager
def descriptors(*paths: Path) -> Iterator[list[int]]:
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in paths]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def copy(
    source: Path,
    target: Path,
    *,
    only_reflinked: bool = False,
    on_progress: Callable[[int], None] | None = None,
    stopping: Callable[[], bool] = never,
) -> CopyReport:
    scratch = target.with_name(target.name + ".scratch")
    target.mkdir()
    scratch.mkdir()
    with descriptors(source, target, scratch) as (src, dst, aside):
        return copy_tree(
            src,
            dst,
            aside,
            only_reflinked=only_reflinked,
            on_progress=on_progress,
            stopping=stopping,
        )
