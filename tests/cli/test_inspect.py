"""The command inspect: all that is known of a volume."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import elsewhere, process, shell, volfs
from tests.conftest import MountFactory


def fields(text: str) -> dict[str, list[str]]:
    """What is shown for people: values by titles."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        title = line[:9].strip().removesuffix(":") or title
        found.setdefault(title, []).append(line[9:])
    return found


def test_for_people(web: Path) -> None:
    result = volfs("inspect", "web")
    assert (result.code, result.err) == (0, "")
    shown = fields(result.out)
    (created,) = shown.pop("Created")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", created)
    assert shown == {
        "Name": ["web"],
        "Driver": ["local"],
        "Path": [str(web)],
        "In tree": ["not mounted"],
        "Labels": ["team=blue"],
        "Options": ["-"],
        "Size": ["8.0 KiB in 2 files and directories"],
        "Used by": ["nobody"],
    }


def test_json_of_what_is_there(web: Path) -> None:
    result = volfs("inspect", "--json", "web", "nope")
    assert result.code == 4
    assert result.err == f"volfs: no volume 'nope' in {os.environ['VOLFS_SCOPE']}\n"
    (found,) = result.json
    assert found.pop("created_at").endswith("Z")
    assert found == {
        "name": "web",
        "driver": "local",
        "path": str(web),
        "tree_paths": [],
        "labels": {"team": "blue"},
        "options": {},
        "size": 8192,
        "entries": 2,
        "holders": [],
    }


def test_several_are_kept_apart(web: Path) -> None:
    volfs("create", "other")
    first, second = volfs("inspect", "other", "web").out.split("\n\n")
    assert fields(first)["Name"] == ["other"]
    assert fields(second)["Name"] == ["web"]


def test_without_measuring(web: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("it measures")

    monkeypatch.setattr("volfs.cli.measuring.measure", refuse)
    assert "Size" not in fields(volfs("inspect", "--no-size", "web").out)
    (found,) = volfs("inspect", "--no-size", "--json", "web").json
    assert "size" not in found


def test_data_whose_disk_is_not_mounted(web: Path, tmp_path: Path) -> None:
    (web / "index.html").unlink()
    web.rmdir()
    web.symlink_to(tmp_path / "disk")
    shown = fields(volfs("inspect", "web").out)
    assert (shown["Path"], shown["Size"]) == ([str(tmp_path / "disk")], ["unknown"])
    (found,) = volfs("inspect", "--json", "web").json
    assert (found["size"], found["entries"]) == (None, None)


def test_controls_are_shown_escaped(scope: Path) -> None:
    assert volfs("create", "a b", "--label", "x=\x1b[2J\x9b").code == 0
    assert fields(volfs("inspect", "a b").out)["Labels"] == ["x=\\x1b[2J\\x9b"]


@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
class TestMounted:
    def test_every_tree_and_every_user(self, mount: MountFactory) -> None:
        tree = mount()
        second = mount(scope=tree.scope)
        (volume := tree.mnt / "my data").mkdir()
        (volume / "file").touch()
        (target := tree.mnt.parent / "target").mkdir()
        with (
            process(*elsewhere(f"mount --bind '{volume}' '{target}'")) as mounter,
            process(*shell(f"exec 3<'{volume}/file'")) as reader,
        ):
            shown = fields(volfs("inspect", "--scope", tree.scope, "my data").out)
            assert shown["In tree"] == [f"{tree.mnt}/my data", f"{second.mnt}/my data"]
            assert shown["Used by"] == [
                f"mounted at {target} by process {mounter} (sh)",
                f"open {volume}/file by process {reader} (sh)",
            ]
            (found,) = volfs("inspect", "--json", "--scope", tree.scope, "my data").json
            assert found["tree_paths"] == shown["In tree"]
            assert found["holders"][1] == {
                "kind": "open",
                "detail": f"{volume}/file",
                "pid": reader,
                "command": "sh",
                "container": None,
                "uid": 0,
            }

    def test_a_mount_of_the_data_path(self, web: Path, tmp_path: Path) -> None:
        (target := tmp_path / "target").mkdir()
        subprocess.run(["mount", "--bind", web, target], check=True)
        try:
            assert fields(volfs("inspect", "web").out)["Used by"] == [f"mounted at {target}"]
        finally:
            subprocess.run(["umount", target], check=True)
