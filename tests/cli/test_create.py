"""The command create makes volumes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tests.children import needs_root
from tests.cli.running import Result, names, volfs
from tests.filesystems import tmpfs


class TestAnnouncing:
    def test_a_scope_that_is_made(self, scope: Path) -> None:
        announced = f"made the scope {scope}\n"
        assert volfs("create", "web") == Result(0, "web\n", announced)
        assert volfs("create", "db") == Result(0, "db\n", "")

    def test_also_for_a_volume_that_is_not(self, scope: Path) -> None:
        scope.mkdir()
        result = volfs("create", ".web")
        assert result.code == 3
        assert result.err.startswith(f"made the scope {scope}\n")


class TestCreate:
    def test_makes_volumes_and_prints_their_names(self, scope: Path) -> None:
        result = volfs("create", "b", "a", "vol1 (copy 1)")
        assert (result.code, result.out, result.err) == (
            0,
            "b\na\nvol1 (copy 1)\n",
            f"made the scope {scope}\n",
        )
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
        made, *failures = result.err.splitlines()
        assert (made, len(failures)) == (f"made the scope {scope}", 2)
        assert names() == ["a", "z"]

    def test_a_name_of_dashes_goes_after_two_dashes(self, scope: Path) -> None:
        assert volfs("create", "--", "-x").code == 3
        assert volfs("create", "-x").code == 2

    def test_no_key(self, scope: Path) -> None:
        assert volfs("create", "x", "--label", "=1").code == 2

    @needs_root
    def test_the_first_code_counts_also_where_the_filesystem_refuses(self, tmp_path: Path) -> None:
        with tmpfs(tmp_path / "full", size="64k") as full:
            assert volfs("create", "there", "--scope", full / "scope").code == 0
            with suppress(OSError):
                (full / "filler").write_bytes(bytes(1 << 20))
            result = volfs("create", "--scope", full / "scope", "new", ".x")
            assert result.code == 1
            assert result.err.startswith("volfs: new: No space left on device\n")
            assert volfs("create", "--scope", full / "scope", ".x", "new").code == 3
