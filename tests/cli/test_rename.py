"""The command rename gives a volume another name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import names, volfs


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
