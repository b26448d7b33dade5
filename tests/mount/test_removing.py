"""Removing directories, also while others walk them or are inside."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.children import Child, run_as
from tests.mount.comparing import Pair, outcome

pytestmark = pytest.mark.no_data


def test_rmdir_errors(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        (top / "full" / "sub").mkdir(parents=True)
        (top / "file").touch()
        (top / "link").symlink_to("full")
        directories = ("full", "file", "link", "missing", "full/.", "full/..", "full/sub/")
        told: list[object] = [outcome(os.rmdir, f"{top}/{name}") for name in directories]
        told += [outcome(os.unlink, f"{top}/{name}") for name in ("full", "link", "no", "file/")]
        return told

    pair.same(operation)


def test_removing_the_current_directory(pair: Pair) -> None:
    def live_on(top: Path) -> list[object]:
        (top / "d").mkdir()
        os.chdir(top / "d")
        (top / "d").rmdir()
        return [
            outcome(os.getcwd),
            outcome(os.listdir),
            outcome(os.listdir, "."),
            outcome(os.mkdir, "new"),
            outcome(lambda: os.close(os.open("new", os.O_CREAT))),
            outcome(lambda: os.stat(".").st_nlink),
            outcome(lambda: os.stat("..").st_ino == top.stat().st_ino),
            outcome(os.rmdir, "."),
            outcome(os.symlink, "x", "y"),
            outcome(os.rename, ".", "../e"),
            outcome(os.chdir, ".."),
            os.getcwd() == str(top),
        ]

    pair.same(lambda top: run_as(partial(live_on, top), 0))


def test_two_processes_walk_and_delete_the_same_tree(pair: Pair) -> None:
    for number in range(10):
        for sub in range(3):
            directory = pair.mounted / "tree" / f"{number}" / f"{sub}"
            directory.mkdir(parents=True)
            for file in range(5):
                (directory / f"{file}").touch()

    def remove() -> int:
        return subprocess.run(
            ["rm", "-rf", pair.mounted / "tree"], stderr=subprocess.DEVNULL
        ).returncode

    with Child(remove) as one, Child(remove) as two:
        assert 0 in (one.result(), two.result()) or not (pair.mounted / "tree").exists()
    shutil.rmtree(pair.mounted / "tree", ignore_errors=True)
    assert os.listdir(pair.mounted) == os.listdir(pair.data) == []


def test_one_process_walks_while_another_moves_directories(pair: Pair) -> None:
    for number in range(30):
        (pair.mounted / f"d{number}" / "sub").mkdir(parents=True)
        (pair.mounted / f"d{number}" / "sub" / "f").touch()

    def move() -> None:
        for turn in range(60):
            number = turn % 30
            here = pair.mounted / f"d{number}"
            there = pair.mounted / f"d{(number + 1) % 30}" / "guest"
            here.rename(there)
            there.rename(here)

    with Child(move) as child:
        for _ in range(5):
            for _, directories, files in os.walk(pair.mounted):
                assert set(files) <= {"f"}
                assert len(directories) <= 31
        child.result()
    left = {path.relative_to(pair.mounted) for path in pair.mounted.rglob("f")}
    assert left == {Path(f"d{number}/sub/f") for number in range(30)}
