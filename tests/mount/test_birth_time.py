"""When a file was made, as statx(2) says: the time of the file below."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Mounted
from tests.mount.comparing import Pair

pytestmark = [pytest.mark.needs_tap, pytest.mark.no_data]


def born(path: Path) -> str:
    """stat(1)'s birth time, with all digits; "-" if there is none."""
    command = ["stat", "--cached=never", "--format=%w", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


KINDS = ("directory", "file", "link", "fifo")


def make_all(top: Path) -> None:
    (top / "directory").mkdir()
    (top / "file").write_bytes(b"content")
    (top / "link").symlink_to("nowhere")
    os.mkfifo(top / "fifo")


def test_birth_times_are_the_files_own(pair: Pair) -> None:
    make_all(pair.mounted)
    for name in KINDS:
        found = born(pair.mounted / name)
        assert found == born(pair.data / name) != "-", name
    assert born(pair.mounted) == born(pair.data)


def test_seconds_for_programs(pair: Pair) -> None:
    (pair.mounted / "file").touch()
    seconds = [
        subprocess.run(
            ["stat", "--format=%W", path / "file"], check=True, capture_output=True, text=True
        ).stdout
        for path in (pair.mounted, pair.data)
    ]
    assert seconds[0] == seconds[1]
    assert int(seconds[0]) > 0


def test_a_change_leaves_it(pair: Pair) -> None:
    path = pair.mounted / "file"
    path.write_bytes(b"old")
    before = born(path)
    with path.open("ab") as file:
        file.write(b"new")
        file.flush()
        assert born(path) == before
    os.utime(path, ns=(1, 1))
    path.chmod(0o600)
    path.rename(pair.mounted / "renamed")
    assert born(pair.mounted / "renamed") == before
    os.link(pair.mounted / "renamed", pair.mounted / "other")
    assert born(pair.mounted / "other") == before


def test_a_file_of_the_same_name_is_younger(pair: Pair) -> None:
    path = pair.mounted / "file"
    path.touch()
    before = born(path)
    path.unlink()
    path.touch()
    assert born(path) == born(pair.data / "file")
    assert born(path) > before


def test_made_behind_the_mount(pair: Pair, shared: Mounted) -> None:
    (pair.data / "file").touch()
    shared.drop_caches()
    assert born(pair.mounted / "file") == born(pair.data / "file")


def test_the_root_has_what_it_can(shared: Mounted) -> None:
    """The root's own is nobody's file: any answer but a failure will do, and the rest is right."""
    command = ["stat", "--format=%i %F", str(shared.mnt)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "directory"]
    assert born(shared.mnt)
