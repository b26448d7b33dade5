"""The command restore brings removed volumes back."""

from __future__ import annotations

from pathlib import Path

from tests.cli.running import names, volfs


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
