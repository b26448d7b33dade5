"""The command label sets and removes labels."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import volfs
from tests.conftest import MountFactory


class TestLabel:
    def test_sets_and_removes(self, web: Path) -> None:
        result = volfs("label", "web", "tier=front", "team=a=b", "empty=")
        assert (result.code, result.out, result.err) == (0, "", "")
        assert volfs("label", "web").out == "empty=\nteam=a=b\ntier=front\n"
        result = volfs("label", "web", "team-", "absent-", "tier=back", "--json")
        assert result.json["labels"] == {"tier": "back", "empty": ""}
        (found,) = volfs("ls", "--json").json
        assert found["labels"] == {"tier": "back", "empty": ""}

    def test_keeps_the_rest(self, scope: Path) -> None:
        volfs("create", "web", "--opt", "mode=0700")
        (before,) = volfs("ls", "--json").json
        volfs("label", "web", "a=1")
        (after,) = volfs("ls", "--json").json
        assert after == before | {"labels": {"a": "1"}}

    @pytest.mark.parametrize("words", [["team"], ["=x"], ["-"], ["a=1", "a-"], [""]])
    def test_wrong_usage(self, web: Path, words: list[str]) -> None:
        result = volfs("label", "web", "new=1", "--", *words)
        assert result.code == 2
        assert volfs("label", "web").out == "team=blue\n"

    def test_missing(self, web: Path) -> None:
        assert volfs("label", "nope", "a=1").code == 4
        assert volfs("label", "nope").code == 4

    def test_controls_are_shown_escaped(self, web: Path) -> None:
        volfs("label", "web", "a=\x1b[31m\n")
        assert volfs("label", "web").out == "a=\\x1b[31m\\n\nteam=blue\n"

    def test_too_much(self, web: Path) -> None:
        assert volfs("label", "web", f"a={'x' * 2**20}").code == 3

    @pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
    def test_is_what_a_mounted_tree_says(self, mount: MountFactory) -> None:
        tree = mount()
        (tree.mnt / "web").mkdir()
        attribute = "volfs.label.team"
        assert volfs("label", "--scope", tree.scope, "web", "team=blue").code == 0
        assert os.getxattr(tree.mnt / "web", attribute) == b"blue"
        subprocess.run(["setfattr", "-n", attribute, "-v", "red", tree.mnt / "web"], check=True)
        assert volfs("label", "--scope", tree.scope, "web").out == "team=red\n"
        subprocess.run(["setfattr", "-x", attribute, tree.mnt / "web"], check=True)
        assert volfs("label", "--scope", tree.scope, "web").out == ""
