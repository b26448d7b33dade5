"""What the plain level cannot do, and how programs fare with that."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Mounted, mounting, open_workspace
from tests.mount.comparing import Pair

pytestmark = pytest.mark.any_level


@pytest.fixture(scope="module")
def shared() -> Iterator[Mounted]:
    """A mount at the plain level, for all tests of the module."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        yield mount(no_tap=True)


def test_temporary_files_without_a_name(pair: Pair) -> None:
    """A known difference: O_TMPFILE is not offered; tempfile and others fall back."""
    with pytest.raises(OSError) as caught:
        os.open(pair.mounted, os.O_TMPFILE | os.O_RDWR)
    assert caught.value.errno == errno.EOPNOTSUPP
    with tempfile.TemporaryFile(dir=pair.mounted) as file:
        file.write(b"works")
        file.seek(0)
        assert file.read() == b"works"


def test_preallocation_falls_back(pair: Pair) -> None:
    """posix_fallocate of the C library writes zeros where the file system cannot."""

    def operation(top: Path) -> list[object]:
        fd = os.open(top / "f", os.O_CREAT | os.O_RDWR, 0o644)
        os.write(fd, b"content")
        os.posix_fallocate(fd, 0, 100_000)
        told: list[object] = [os.fstat(fd).st_size, os.pread(fd, 10, 0)]
        os.close(fd)
        return told

    pair.same(operation)


def test_seeking_for_data_and_holes(pair: Pair) -> None:
    """Without the file system's help everything is data, which programs must expect."""
    with (pair.mounted / "f").open("wb") as file:
        file.truncate(1 << 20)
        fd = file.fileno()
        assert os.lseek(fd, 0, os.SEEK_DATA) in (0, 1 << 20)
        assert os.lseek(fd, 0, os.SEEK_HOLE) in (0, 1 << 20)
