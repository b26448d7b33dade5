"""The command clone copies a volume into a new one."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.children import needs_root
from tests.cli.copying import SIGNALS, busy, staged
from tests.cli.running import names, volfs
from tests.conftest import open_workspace, wait_for
from tests.copies.trees import make_tree, seen
from tests.filesystems import btrfs
from tests.interpreter import Piped
from tests.local.scopes import hidden_entries

pytestmark = pytest.mark.any_level


class TestClone:
    def test_is_a_copy_with_labels_and_options(self, web: Path, scope: Path) -> None:
        make_tree(web)
        result = volfs("clone", "--label", "stage=test", "web", "copy")
        assert (result.code, result.err) == (0, "")
        assert re.fullmatch(r"copy is a copy of web \([\d.]+ MiB copied\)\n", result.out)
        assert seen(scope / "volumes/copy/_data") == seen(web)
        (shown,) = volfs("inspect", "--json", "copy").json
        assert shown["labels"] == {"team": "blue", "stage": "test"}
        assert shown["options"] == {"from": "web"}

    def test_json(self, web: Path, scope: Path) -> None:
        shown = volfs("clone", "--json", "--opt", "mode=0700", "web", "copy").json
        assert shown["name"] == "copy"
        assert shown["options"] == {"from": "web", "mode": "700"}
        size = shown["copied"].pop("bytes")
        assert size >= len("hello")
        assert shown["copied"] == {"reflinked": False, "point_in_time": True, "changed": 0}
        assert (scope / "volumes/copy/_data").stat().st_mode & 0o777 == 0o700

    @needs_root
    def test_says_that_data_is_shared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_workspace() as workspace, btrfs(workspace / "btrfs") as place:
            monkeypatch.setenv("VOLFS_SCOPE", str(place / "scope"))
            assert volfs("create", "web").code == 0
            (place / "scope/volumes/web/_data/file").write_bytes(bytes(1 << 20))
            result = volfs("clone", "web", "copy")
            assert result.out == "copy is a copy of web (sharing its data)\n"

    def test_a_source_that_never_rests_is_a_warning(self, web: Path) -> None:
        with busy(web / "busy"):
            result = volfs("clone", "web", "copy")
        assert result.code == 0
        assert "web was changed while it was copied" in result.err
        assert "busy" in result.err
        assert "the copy is not of one point in time" in result.err
        assert names() == ["copy", "web"]

    def test_refusals(self, web: Path) -> None:
        assert volfs("create", "other").code == 0
        assert (volfs("clone", "nope", "x").code, volfs("clone", "web", "other").code) == (4, 5)
        assert volfs("clone", "web", ".hidden").code == 3
        assert volfs("clone", "--opt", "color=red", "web", "x").code == 3
        assert names() == ["other", "web"]

    @pytest.mark.parametrize(("number", "code"), SIGNALS)
    def test_broken_off_it_leaves_nothing(
        self, web: Path, scope: Path, number: int, code: int
    ) -> None:
        (web / "large").write_bytes(bytes(256 << 20))
        with Piped("clone", "web", "copy") as process:
            wait_for(lambda: staged(scope, "large"), "the copying to begin")
            begun = time.monotonic()
            process.send_signal(number)
            assert process.wait(30) == code, process.stderr.read()
            assert time.monotonic() - begun < 5
        assert names() == ["web"]
        assert hidden_entries(scope) == []
