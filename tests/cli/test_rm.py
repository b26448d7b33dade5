"""The command rm removes volumes into the trash."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import names, volfs


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
        assert result.err == f"volfs: no volume 'nope' in {os.environ['VOLFS_SCOPE']}\n"
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
                    "uid": None,
                }
            ]
            assert f"Used by: mounted at {target}\n" in volfs("inspect", "web").out
            assert volfs("rename", "web", "other").code == 6
        finally:
            subprocess.run(["umount", target], check=True)
        assert volfs("rm", "web").code == 0
