"""The commands that work on a scope: what they do, print, and end with."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import names, on_terminal, program, volfs
from tests.conftest import MountFactory


class TestCreate:
    def test_makes_volumes_and_prints_their_names(self, scope: Path) -> None:
        result = volfs("create", "b", "a", "vol1 (copy 1)")
        assert (result.code, result.out, result.err) == (0, "b\na\nvol1 (copy 1)\n", "")
        assert names() == ["a", "b", "vol1 (copy 1)"]
        assert (scope / "volumes/a/_data").is_dir()

    def test_again_is_success(self, web: Path) -> None:
        assert volfs("create", "web").code == 0
        assert (web / "index.html").exists()

    def test_json(self, scope: Path) -> None:
        (made,) = volfs("create", "--json", "--label", "a=1", "--label", "b", "x").json
        assert made.pop("created_at").endswith("Z")
        assert made == {
            "name": "x",
            "driver": "local",
            "path": str(scope / "volumes/x/_data"),
            "labels": {"a": "1", "b": ""},
            "options": {},
        }

    def test_other_options_conflict(self, scope: Path) -> None:
        assert volfs("create", "web", "--opt", "mode=0700").code == 0
        result = volfs("create", "web", "--opt", "mode=0711")
        assert result.code == 5
        assert result.err.startswith("volfs: volume 'web'")

    def test_unknown_option(self, scope: Path) -> None:
        result = volfs("create", "web", "--opt", "color=red")
        assert result.code == 3
        assert "color" in result.err
        assert names() == []

    def test_one_bad_name_keeps_no_other_from_being_made(self, scope: Path) -> None:
        result = volfs("create", "a", ".hidden", "b/c", "z")
        assert result.code == 3
        assert len(result.err.splitlines()) == 2
        assert names() == ["a", "z"]

    def test_a_name_of_dashes_goes_after_two_dashes(self, scope: Path) -> None:
        assert volfs("create", "--", "-x").code == 3
        assert volfs("create", "-x").code == 2

    def test_no_key(self, scope: Path) -> None:
        assert volfs("create", "x", "--label", "=1").code == 2


class TestRemove:
    def test_goes_to_the_trash_and_comes_back(self, web: Path) -> None:
        result = volfs("rm", "web")
        assert (result.code, result.out) == (
            0,
            "removed web (volfs restore web brings it back)\n",
        )
        assert names() == []
        (entry,) = volfs("ls", "--removed", "--json").json
        assert entry.keys() == {"id", "name", "removed_at", "by"}
        assert entry["name"] == "web"
        assert entry["by"].startswith("volfs rm by ")
        assert volfs("restore", "web").out == "restored web\n"
        assert (web / "index.html").read_text() == "hello"
        assert volfs("inspect", "--json", "web").json[0]["labels"] == {"team": "blue"}

    def test_the_way_back_names_the_scope_when_one_was_given(self, tmp_path: Path) -> None:
        scope = tmp_path / "a scope"
        assert volfs("create", "it's", "--scope", scope).code == 3
        assert volfs("create", "a b", "--scope", scope).code == 0
        result = volfs("rm", "--scope", scope, "a b")
        assert result.out == (
            f"removed a b (volfs restore --scope '{scope}' 'a b' brings it back)\n"
        )

    def test_missing(self, web: Path) -> None:
        result = volfs("rm", "nope", "web")
        assert result.code == 4
        assert result.err == "volfs: no volume 'nope'\n"
        assert names() == []

    def test_only_empty(self, web: Path) -> None:
        result = volfs("rm", "--empty", "web")
        assert (result.code, result.err) == (6, "volfs: volume 'web' is not empty\n")
        (web / "index.html").unlink()
        assert volfs("rm", "--empty", "--json", "web").json == [{"name": "web"}]

    def test_the_first_code_counts(self, web: Path) -> None:
        assert volfs("rm", "--empty", "none", "web").code == 4
        assert volfs("rm", "--empty", "web", "none").code == 6
        assert volfs("create", "--opt", "mode=0700", ".x", "web").code == 3
        assert volfs("create", "--opt", "mode=0700", "web", ".x").code == 5

    def test_outside_the_scope(self, scope: Path, web: Path, tmp_path: Path) -> None:
        web.rename(tmp_path / "elsewhere")
        web.symlink_to(tmp_path / "elsewhere")
        result = volfs("rm", "web")
        assert result.code == 7
        assert (tmp_path / "elsewhere/index.html").exists()

    @pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
    def test_in_use_says_by_whom(self, web: Path, tmp_path: Path) -> None:
        (target := tmp_path / "target").mkdir()
        subprocess.run(["mount", "--bind", web, target], check=True)
        try:
            result = volfs("rm", "web")
            assert result.code == 6
            assert result.err == f"volfs: volume 'web' is in use: mounted at {target}\n"
            (found,) = volfs("inspect", "--json", "web").json
            assert found["holders"] == [
                {
                    "kind": "mount",
                    "detail": str(target),
                    "pid": None,
                    "command": "",
                    "container": None,
                }
            ]
            assert f"Used by: mounted at {target}\n" in volfs("inspect", "web").out
            assert volfs("rename", "web", "other").code == 6
        finally:
            subprocess.run(["umount", target], check=True)
        assert volfs("rm", "web").code == 0


class TestRename:
    def test_keeps_everything(self, web: Path, scope: Path) -> None:
        result = volfs("rename", "web", "site")
        assert (result.code, result.out) == (0, "")
        assert names() == ["site"]
        (found,) = volfs("ls", "--json").json
        assert found["labels"] == {"team": "blue"}
        assert Path(found["path"], "index.html").exists()

    @pytest.mark.parametrize(
        ("old", "new", "code"), [("web", "other", 5), ("nope", "x", 4), ("web", ".x", 3)]
    )
    def test_refusals(self, web: Path, old: str, new: str, code: int) -> None:
        assert volfs("create", "other").code == 0
        assert volfs("rename", old, new).code == code
        assert names() == ["other", "web"]


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


class TestRestore:
    def test_by_id_under_another_name(self, web: Path) -> None:
        volfs("rm", "web")
        volfs("create", "web")
        (entry,) = volfs("ls", "--removed", "--json").json
        result = volfs("restore", "web")
        assert result.code == 5
        result = volfs("restore", entry["id"], "--as", "old", "--json")
        assert result.code == 0
        assert result.json["name"] == "old"
        assert names() == ["old", "web"]
        assert names("--removed") == []

    def test_nothing_of_that_name(self, web: Path) -> None:
        assert volfs("restore", "nope").code == 4


class TestPurge:
    def test_empties_the_trash_only(self, web: Path, scope: Path) -> None:
        volfs("create", "gone")
        volfs("rm", "gone")
        (id,) = names("--removed")
        result = volfs("purge", "--yes")
        assert (result.code, result.out) == (0, f"deleted gone ({id})\n")
        assert names("--removed") == []
        assert list((scope / "trash").iterdir()) == []
        assert names() == ["web"]
        assert volfs("purge").out == "nothing to delete\n"
        assert volfs("purge", "--yes", "--json").json == []

    def test_keeps_what_is_younger(self, web: Path) -> None:
        volfs("rm", "web")
        assert volfs("purge", "--yes", "--older-than", "1h").out == "nothing to delete\n"
        assert volfs("purge", "--older-than", "1h").out == "nothing to delete\n"
        assert volfs("purge", "--yes", "--older-than", "0", "--json").json[0]["name"] == "web"

    def test_without_a_terminal_nobody_can_be_asked(self, web: Path) -> None:
        volfs("rm", "web")
        result = program("purge")
        assert result.code == 2
        assert "--yes" in result.err
        assert len(names("--removed")) == 1

    def test_asks(self, web: Path) -> None:
        volfs("rm", "web")
        text, code = on_terminal("purge", answer="n\n")
        assert "Delete these 1 for good?" in text
        assert code == 130
        assert len(names("--removed")) == 1
        text, code = on_terminal("purge", answer="y\n")
        assert "deleted web" in text
        assert code == 0
        assert names("--removed") == []

    def test_bad_duration(self, web: Path) -> None:
        assert volfs("purge", "--older-than", "soon").code == 2


class TestDf:
    def test_counts_blocks_and_hard_links_once(self, web: Path, scope: Path) -> None:
        (web / "big").write_bytes(b"x" * 2**20)
        os.link(web / "big", web / "same")
        (web / "dir").mkdir()
        (web / "link").symlink_to("/usr")
        volfs("create", "gone")
        (scope / "volumes/gone/_data/f").write_bytes(b"x" * 2**16)
        volfs("rm", "gone")
        found = volfs("df", "--json").json
        assert found.keys() == {"scope", "filesystem", "volumes", "removed", "totals"}
        assert found["scope"] == str(scope)
        assert found["filesystem"].keys() == {"size", "used", "available"}
        (volume,) = found["volumes"]
        assert volume["entries"] == 5  # _data, index.html, big, dir, link
        du = subprocess.check_output(["du", "-s", "-B1", web], text=True)
        assert volume["size"] == int(du.split()[0])
        (removed,) = found["removed"]
        assert removed["name"] == "gone"
        assert removed["size"] > 2**16
        assert found["totals"] == {"volumes": volume["size"], "removed": removed["size"]}

    def test_the_largest_first(self, web: Path, scope: Path, tmp_path: Path) -> None:
        volfs("create", "big", "unmounted")
        (scope / "volumes/big/_data/f").write_bytes(b"x" * 2**20)
        (unmounted := scope / "volumes/unmounted/_data").rmdir()
        unmounted.symlink_to(tmp_path / "disk")
        assert [v["name"] for v in volfs("df", "--json").json["volumes"]] == [
            "big",
            "web",
            "unmounted",
        ]
        lines = volfs("df").out.splitlines()
        assert lines[1].startswith("big\t1.0 MiB\t2\t")
        assert lines[3] == "unmounted\t-\t-\t"

    def test_for_people(self, web: Path) -> None:
        result = volfs("df")
        assert re.search(r"^web\t[\d.]+ KiB\t2\t$", result.out, re.MULTILINE)
        assert re.fullmatch(
            r"volumes [\d.]+ KiB, trash 0 B, free [\d.]+ \w+ of [\d.]+ \w+ in /.*\n", result.err
        )
