"""What the kernel lets go of in the background is waited for."""

from __future__ import annotations

import os

import pytest

from tests.conftest import Mounted


@pytest.mark.parametrize("directories", [False, True])
def test_volume_can_be_removed_as_soon_as_its_files_are_closed(
    shared: Mounted, directories: bool
) -> None:
    """close(2) returns before the daemon hears of it (RELEASE is sent in the background)."""
    for turn in range(15):
        volume = shared.mnt / f"v{directories}{turn}"
        volume.mkdir()
        for number in range(300):
            if directories:
                (volume / f"f{number}").mkdir()
            else:
                (volume / f"f{number}").touch()
        opened = [os.open(path, os.O_RDONLY) for path in volume.iterdir()]
        for fd in opened:
            os.close(fd)
        volume.rmdir()


def test_volume_is_busy_for_as_long_as_a_file_is_open(shared: Mounted) -> None:
    volume = shared.mnt / "busy"
    volume.mkdir()
    with (volume / "f").open("w"), pytest.raises(OSError, match="busy"):
        volume.rmdir()
    volume.rmdir()
