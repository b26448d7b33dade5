"""The command prune: what nobody uses goes into the trash, and nothing else does."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.running import Terminal, names, on_terminal, process, program, shell, volfs
from tests.conftest import MountFactory
from volfs.cli.filters import Filters
from volfs.cli.pruning import Chosen, remove_chosen
from volfs.cli.scope import open_scope

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")


@contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    target.mkdir()
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


class TestUnasked:
    def test_everything_can_be_restored(self, web: Path) -> None:
        volfs("create", "db")
        result = volfs("prune", "--yes")
        assert (result.code, result.err) == (0, "")
        assert result.out == (
            "removed db (volfs restore db brings it back)\n"
            "removed web (volfs restore web brings it back)\n"
        )
        assert names() == []
        removed = volfs("ls", "--removed", "--json").json
        assert {entry["name"] for entry in removed} == {"db", "web"}
        assert removed[0]["by"].startswith("volfs prune by ")
        for name in ("db", "web"):
            assert volfs("restore", name).code == 0
        assert (web / "index.html").read_text() == "hello"
        assert volfs("label", "web").out == "team=blue\n"

    def test_nothing_there(self, web: Path) -> None:
        assert volfs("prune", "--yes").code == 0
        result = volfs("prune", "--yes")
        assert (result.code, result.out) == (0, "nothing to remove\n")
        assert volfs("prune", "--yes", "--json").json == []

    def test_json(self, web: Path) -> None:
        volfs("create", "db")
        assert volfs("prune", "--yes", "--json").json == [{"name": "db"}, {"name": "web"}]

    def test_the_trash_is_left_alone(self, web: Path) -> None:
        volfs("rm", "web")
        before = names("--removed")
        assert volfs("prune", "--yes").out == "nothing to remove\n"
        assert names("--removed") == before

    @pytest.mark.parametrize(
        ("filters", "left"),
        [
            (["label=team"], ["other", "plain"]),
            (["label=team=red"], ["other", "plain", "web"]),
            (["label!=team"], ["web"]),
            (["label!=team", "label!=keep"], ["other", "web"]),
            (["name=w*"], ["other", "plain"]),
            (["name=web", "name=plain"], ["other"]),
            (["name=w"], ["other", "plain", "web"]),
            (["name=^w"], ["other", "plain", "web"]),
            (["driver=other"], ["other", "plain", "web"]),
            (["until=1h"], ["other", "plain", "web"]),
        ],
    )
    def test_only_some(self, web: Path, filters: list[str], left: list[str]) -> None:
        volfs("create", "other", "--label", "keep")
        volfs("create", "plain")
        words = [word for text in filters for word in ("--filter", text)]
        assert volfs("prune", "--yes", *words).code == 0
        assert names() == left

    @pytest.mark.parametrize("text", ["dangling=false", "dangling=true", "all=true", "label"])
    def test_no_such_filter(self, web: Path, text: str) -> None:
        result = volfs("prune", "--yes", "--filter", text)
        assert result.code == 2
        assert "the filters are driver, label, label!, name, until" in result.err
        assert names() == ["web"]

    @needs_root
    def test_what_is_mounted_or_open_stays(self, mount: MountFactory) -> None:
        tree = mount()
        for name in ("bound", "native", "open", "free"):
            (tree.mnt / name).mkdir()
            (tree.mnt / name / "file").touch()
        above = tree.mnt.parent
        with (
            bound(tree.mnt / "bound", above / "one"),
            bound(tree.data("native"), above / "two"),
            process(*shell(f"exec 3<'{tree.mnt}/open/file'")),
        ):
            result = volfs("prune", "--yes", "--scope", tree.scope)
            assert (result.code, result.err) == (0, "")
            assert result.out.startswith("removed free ")
            assert names("--scope", str(tree.scope)) == ["bound", "native", "open"]
        assert volfs("prune", "--yes", "--scope", tree.scope).code == 0
        assert os.listdir(tree.mnt) == []

    def test_what_cannot_go_is_reported_and_the_rest_goes(
        self, web: Path, scope: Path, tmp_path: Path
    ) -> None:
        volfs("create", "aside", "zoo")
        (scope / "volumes/aside/_data").rename(tmp_path / "elsewhere")
        (scope / "volumes/aside/_data").symlink_to(tmp_path / "elsewhere")
        result = volfs("prune", "--yes")
        assert result.code == 7
        assert result.err.startswith("volfs: volume 'aside' is not removed")
        assert names() == ["aside"]

    def test_many_are_looked_at_anew_from_time_to_time(
        self, scope: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What comes into use while others are being removed is seen."""
        from volfs.store import VolumeStore

        volfs("create", "a", "b", "c")
        opened = []
        look = VolumeStore.remove

        def remove(
            store: VolumeStore, name: str, *, by: str = "", only_empty: bool = False
        ) -> None:
            opened.append(store)
            look(store, name, by=by, only_empty=only_empty)

        monkeypatch.setattr(VolumeStore, "remove", remove)
        with open_scope(str(scope)) as now:
            chosen = [Chosen.of(volume) for volume in now.store.list()]
        filters = Filters(dangling=True)
        removed, code = remove_chosen(str(scope), filters, chosen, quiet=True, fresh=0)
        assert (removed, code) == (["a", "b", "c"], 0)
        assert names() == []
        assert len(set(map(id, opened))) == 3


class TestAsked:
    def test_shows_what_would_go(self, web: Path) -> None:
        volfs("create", "db")
        text, code = on_terminal("prune", answer="y\n")
        assert code == 0
        assert re.search(r"NAME +DRIVER +CREATED +SIZE +LABELS", text)
        assert re.search(r"web +local +\d{4}-\d\d-\d\d \d\d:\d\d +8.0 KiB +team=blue", text)
        assert "Remove these 2 volumes? (volfs restore NAME brings one back) [y/N]" in text
        assert "removed db (volfs restore db brings it back)\n" in text
        assert names() == []

    @pytest.mark.parametrize(
        ("answer", "said", "expected"),
        [
            ("n\n", "\nnothing removed\n", 0),
            ("\n", "\nnothing removed\n", 0),
            ("\x04", "volfs: interrupted\n", 130),
            ("\x03", "volfs: interrupted\n", 130),
        ],
    )
    def test_unless_yes_everything_stays(
        self, web: Path, answer: str, said: str, expected: int
    ) -> None:
        with Terminal("prune") as terminal:
            terminal.until("Remove this volume? (volfs restore NAME brings one back) [y/N]: ")
            terminal.until_it_waits()
            terminal.type(answer)
            text, code = terminal.end()
        assert text.endswith(said)
        assert ("interrupted" in text) == (code == 130)
        assert code == expected
        assert names() == ["web"]

    def test_nothing_there_is_no_question(self, web: Path) -> None:
        volfs("rm", "web")
        text, code = on_terminal("prune")
        assert (text, code) == ("nothing to remove\n", 0)

    def test_without_a_terminal_nobody_can_be_asked(self, web: Path) -> None:
        for words in (["prune"], ["prune", "--json"]):
            result = program(*words)
            assert (result.code, result.out) == (2, "")
            assert "prune asks on a terminal only; use --yes" in result.err
        text, code = on_terminal("prune", "--json")
        assert (text.count("use --yes"), code) == (1, 2)
        assert names() == ["web"]


class TestMeanwhile:
    """What others do between the question and the answer."""

    @pytest.fixture
    def asked(self, web: Path) -> Iterator[Terminal]:
        volfs("create", "db")
        with Terminal("prune") as terminal:
            terminal.until("[y/N]")
            yield terminal

    @needs_root
    def test_what_comes_into_use_is_refused(
        self, asked: Terminal, web: Path, tmp_path: Path
    ) -> None:
        with bound(web, tmp_path / "target"):
            asked.type("y\n")
            text, code = asked.end()
            assert code == 6
            assert f"volfs: volume 'web' is in use: mounted at {tmp_path}/target\n" in text
            assert "removed db" in text
            assert names() == ["web"]

    def test_what_is_made_stays(self, asked: Terminal) -> None:
        volfs("create", "new")
        asked.type("y\n")
        assert asked.end()[1] == 0
        assert names() == ["new"]

    def test_another_volume_of_the_name_stays(self, asked: Terminal) -> None:
        volfs("rm", "db")
        volfs("create", "db")
        asked.type("y\n")
        text, code = asked.end()
        assert code == 1
        assert "volfs: volume 'db' was changed meanwhile and stays\n" in text
        assert "removed web" in text
        assert names() == ["db"]

    def test_what_is_removed_is_no_failure(self, asked: Terminal) -> None:
        volfs("rm", "db")
        asked.type("y\n")
        text, code = asked.end()
        assert code == 0
        assert "'db' was removed by somebody else" in text
        assert names() == []

    def test_what_is_labelled_to_be_kept_stays(self, web: Path) -> None:
        with Terminal("prune", "--filter", "label!=keep") as terminal:
            terminal.until("[y/N]")
            volfs("label", "web", "keep=")
            terminal.type("y\n")
            assert terminal.end()[1] == 1
        assert names() == ["web"]
