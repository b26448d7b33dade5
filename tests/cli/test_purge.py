"""The command purge empties the trash."""

from __future__ import annotations

from pathlib import Path

from tests.cli.running import names, on_terminal, program, volfs


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
        assert "Delete this one for good?" in text
        assert text.endswith("nothing deleted\n")
        assert code == 0
        assert len(names("--removed")) == 1
        text, code = on_terminal("purge", answer="y\n")
        assert "deleted web" in text
        assert code == 0
        assert names("--removed") == []

    def test_bad_duration(self, web: Path) -> None:
        assert volfs("purge", "--older-than", "soon").code == 2
