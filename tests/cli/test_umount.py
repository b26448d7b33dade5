"""The command umount as a program."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import program
from tests.conftest import Mounted, is_mounted

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="these mount as root")


class TestUmount:
    def test_busy_says_who(self, tree: Mounted) -> None:
        (tree.mnt / "vol").mkdir()
        with (tree.mnt / "vol/file").open("w"):
            result = program("umount", tree.mnt)
            assert result.code == 10
            who = f"open {tree.mnt}/vol/file by process {os.getpid()} "
            assert who in result.err
            assert is_mounted(tree.mnt)
        child = subprocess.Popen(["sleep", "100"], cwd=tree.mnt / "vol")
        try:
            result = program("umount", tree.mnt)
            assert f"{tree.mnt}/vol (working directory) by process {child.pid} " in result.err
        finally:
            child.kill()
            child.wait()
        assert program("umount", tree.mnt).code == 0
        assert tree.process.wait(20) == 0

    def test_lazy(self, tree: Mounted) -> None:
        (tree.mnt / "vol").mkdir()
        with (tree.mnt / "vol/file").open("w") as file:
            assert program("umount", "--lazy", tree.mnt).code == 0
            assert not is_mounted(tree.mnt)
            file.write("still served")
            file.flush()
        assert tree.process.wait(20) == 0
        assert (tree.data("vol") / "file").read_text() == "still served"

    def test_nothing_there(self, workspace: Path, tree: Mounted) -> None:
        result = program("umount", workspace, tree.mnt)
        assert result.code == 10
        assert re.fullmatch(r"volfs: cannot unmount .*\n", result.err)
        assert not is_mounted(tree.mnt), "the others are unmounted all the same"
        assert tree.process.wait(20) == 0
