"""The command ls: which volumes it shows, and what of them."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import (
    elsewhere,
    names,
    on_terminal,
    process,
    program,
    shell,
    volfs,
)
from tests.conftest import MountFactory
from tests.interpreter import PROGRAM, ROOT

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")

AT_ONCE = [
    sys.executable,
    "-c",
    "from volfs.cli import cli, progress; progress.DELAY = 0; cli.main()",
]
"""The program, with a progress bar that does not wait for the work to take long."""


def write(scope: Path, volume: str, size: int) -> None:
    (scope / "volumes" / volume / "_data/file").write_bytes(b"x" * size)


def columns(*words: str | Path) -> list[dict[str, str]]:
    """What is listed to a pipe, by the names of the columns."""
    result = volfs("ls", *words)
    head, *lines = (line.split("\t") for line in result.out.splitlines())
    assert (result.code, bool(result.err)) == (0, not lines)
    return [dict(zip(head, line, strict=True)) for line in lines]


class TestWhatIsShown:
    def test_to_a_pipe_it_is_plain(self, web: Path) -> None:
        head, line = volfs("ls").out.splitlines()
        assert head == "name\tdriver\tcreated\tused by\tlabels"
        assert re.fullmatch(r"web\tlocal\t\d{4}-\d\d-\d\d \d\d:\d\d\t-\tteam=blue", line)

    def test_on_a_terminal_it_is_a_table(self, web: Path) -> None:
        text, code = on_terminal("ls")
        assert code == 0
        assert re.search(r"NAME +DRIVER +CREATED +USED BY +LABELS", text)
        assert re.search(r"web +local +\d{4}-\d\d-\d\d \d\d:\d\d +- +team=blue", text)

    def test_a_bad_expression_is_wrong_usage(self, web: Path) -> None:
        result = volfs("ls", "--filter", "name=(web")
        assert (result.code, result.out) == (2, "")
        assert "name=(web is no regular expression" in result.err

    @pytest.mark.parametrize("columns", ["20", "44", "80"])
    def test_an_id_stays_whole(
        self, web: Path, columns: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", columns)
        assert volfs("rm", "web").code == 0
        (id,) = names("--removed")
        text, code = on_terminal("ls", "--removed")
        assert code == 0
        assert id in text
        text, _ = on_terminal("purge", answer="n\n")
        assert id in text

    def test_json(self, web: Path) -> None:
        (found,) = volfs("ls", "--json").json
        assert found.pop("created_at").endswith("Z")
        assert found == {
            "name": "web",
            "driver": "local",
            "path": str(web),
            "labels": {"team": "blue"},
            "options": {},
            "holders": [],
        }

    def test_a_volume_that_something_else_made(self, web: Path, scope: Path) -> None:
        (scope / "volumes/bare/_data").mkdir(parents=True)
        assert names() == ["bare", "web"]
        assert volfs("ls", "--json").json[0]["created_at"] is None
        assert volfs("ls").out.splitlines()[1] == "bare\tlocal\t-\t-\t"

    def test_controls_are_shown_escaped(self, scope: Path) -> None:
        assert volfs("create", "x", "--label", "a=\x1b[31m\n").code == 0
        assert "a=\\x1b[31m\\n" in volfs("ls").out

    def test_no_scope_yet(self, scope: Path) -> None:
        for command in (["ls"], ["df"], ["prune"], ["purge"], ["inspect", "a"], ["label", "a"]):
            result = volfs(*command)
            assert result.code == 9
            assert "volfs create" in result.err
        assert not scope.exists()

    def test_a_reader_that_goes_away(self, web: Path) -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)
        done = subprocess.run(
            [*PROGRAM, "ls"],
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
        )
        os.close(write_end)
        assert (done.returncode, done.stderr) == (1, "")

    def test_a_volume_that_cannot_be_read_keeps_no_other_from_being_listed(
        self, web: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from volfs.local import LocalDriver

        volfs("create", "good")
        read = LocalDriver.read_record

        def broken(driver: LocalDriver, name: str) -> object:
            if name == "web":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(driver, name)

        monkeypatch.setattr(LocalDriver, "read_record", broken)
        result = volfs("ls")
        assert result.code == 1
        assert [line.split("\t")[0] for line in result.out.splitlines()] == ["name", "good"]
        assert result.err == "volfs: web: Input/output error\n"


class TestUsers:
    @needs_root
    def test_in_a_few_words(self, mount: MountFactory) -> None:
        tree = mount()
        for name in ("bound", "free", "open", "both"):
            (tree.mnt / name).mkdir()
            (tree.mnt / name / "file").touch()
        (one := tree.mnt.parent / "one").mkdir()
        (two := tree.mnt.parent / "two").mkdir()
        script = f"mount --bind '{tree.mnt}/bound' '{one}'; mount --bind '{tree.mnt}/both' '{two}'"
        with (
            process(*elsewhere(f"{script}; exec 3<'{two}/file'")),
            process(*shell(f"exec 3<'{tree.mnt}/open/file' 4<'{tree.mnt}/open'")),
            process(*shell(f"exec 3<'{tree.mnt}/open/file'")),
        ):
            shown = {row["name"]: row["used by"] for row in columns("--scope", tree.scope)}
            assert shown == {
                "bound": "1 mount",
                "free": "-",
                "open": "2 processes",
                "both": "1 mount, 1 process",
            }
            in_use = volfs("ls", "-q", "-f", "dangling=false", "--scope", tree.scope)
            assert in_use.out.split() == ["both", "bound", "open"]
            free = volfs("ls", "-q", "--filter", "dangling=1", "--scope", tree.scope)
            assert free.out == "free\n"
            found = {v["name"]: v for v in volfs("ls", "--json", "--scope", tree.scope).json}
            assert [h["detail"] for h in found["bound"]["holders"]] == [str(one)]

    def test_containers_and_references(self) -> None:
        from volfs.cli.output import users
        from volfs.holder import Holder

        one, two = "1" * 64, "2" * 64
        references = [Holder("reference", "a"), Holder("reference", "b")]
        contained = [
            Holder("mount", "/data", 1, "sh", one),
            Holder("open", "/data/f", 2, "sh", one),
            Holder("mount", "/data", 3, "sh", two),
        ]
        assert users([]) == "-"
        assert users(references[:1]) == "1 reference"
        assert users(references + contained) == "2 containers"
        assert users([*contained[:1], Holder("mount", "/mnt")]) == "1 container, 1 mount"


class TestFilters:
    @pytest.fixture(autouse=True)
    def volumes(self, scope: Path) -> None:
        volfs("create", "web", "--label", "team=blue", "--label", "stage=test")
        volfs("create", "web-2", "--label", "team=red")
        volfs("create", "db (copy 1)")

    @pytest.mark.parametrize(
        ("filters", "expected"),
        [
            (["name=web"], ["web", "web-2"]),
            (["name=^web$", "name=db"], ["db (copy 1)", "web"]),
            (["label=team"], ["web", "web-2"]),
            (["label=team", "label=stage=test"], ["web"]),
            (["label=team=red", "name=web"], ["web-2"]),
            (["label!=team"], ["db (copy 1)"]),
            (["driver=local"], ["db (copy 1)", "web", "web-2"]),
            (["driver=other"], []),
            (["dangling=true"], ["db (copy 1)", "web", "web-2"]),
            (["dangling=0"], []),
            (["until=1h"], []),
            (["until=2100-01-01"], ["db (copy 1)", "web", "web-2"]),
        ],
    )
    def test_which_match(self, filters: list[str], expected: list[str]) -> None:
        words = [word for text in filters for word in ("-f", text)]
        assert names(*words) == expected
        assert [row["name"] for row in columns(*words)] == expected
        assert [volume["name"] for volume in volfs("ls", "--json", *words).json] == expected

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("color=red", "unknown filter 'color'; the filters are dangling, driver, label"),
            ("web", "'web' is not NAME=VALUE"),
            ("dangling=maybe", "neither true nor false"),
        ],
    )
    def test_wrong_usage(self, text: str, complaint: str) -> None:
        result = volfs("ls", "--filter", text)
        assert (result.code, result.out) == (2, "")
        assert complaint in result.err

    @pytest.mark.parametrize("word", [["-f", "name=web"], ["--size"], ["--sort", "size"]])
    def test_not_for_the_trash(self, word: list[str]) -> None:
        assert volfs("ls", "--removed", *word).code == 2


class TestSizesAndOrder:
    def test_sizes_on_request(self, web: Path, scope: Path) -> None:
        write(scope, "web", 2**20)
        assert "size" not in volfs("ls", "--json").json[0]
        (row,) = columns("--size")
        assert row["size"] == "1.0 MiB"
        assert [*row] == ["name", "driver", "created", "size", "used by", "labels"]
        (found,) = volfs("ls", "-s", "--json").json
        assert (found["size"], found["entries"]) == (_du(web), 3)

    def test_order(self, scope: Path) -> None:
        for name, size in (("b", 2**16), ("c", 2**20), ("a", 0)):
            volfs("create", name)
            write(scope, name, size)
            made = f'{{"created_at": "2026-01-0{2 if name == "c" else 1}T00:00:0{size % 7}Z"}}'
            (scope / "volumes" / name / "volume.json").write_text(made)
        (scope / "volumes/unknown/_data").mkdir(parents=True)
        assert names() == ["a", "b", "c", "unknown"]
        assert names("-r") == ["unknown", "c", "b", "a"]
        assert names("--sort", "size")[:2] == ["c", "b"]
        assert names("--sort", "size", "--reverse")[-2:] == ["b", "c"]
        assert names("--sort", "created")[0] == "c"
        assert names("--sort", "created")[-1] == "unknown"
        assert columns("--sort", "size")[0]["size"] == "1.0 MiB"
        assert volfs("ls", "--sort", "colour").code == 2

    def test_of_what_cannot_be_measured(self, web: Path, scope: Path, tmp_path: Path) -> None:
        (web / "index.html").unlink()
        web.rmdir()
        web.symlink_to(tmp_path / "disk that is not mounted")
        (row,) = columns("--size")
        assert row["size"] == "-"
        assert volfs("ls", "--size", "--json").json[0]["size"] is None

    def test_of_the_trash(self, scope: Path) -> None:
        volfs("create", "a", "b")
        volfs("rm", "a")
        volfs("rm", "b")
        lines = volfs("ls", "--removed").out.splitlines()
        assert [line.split("\t")[0] for line in lines] == ["name", "b", "a"]
        assert names("--removed", "--reverse") == names("--removed")[::-1]


class TestProgress:
    def test_is_shown_on_a_terminal(self, web: Path) -> None:
        text, code = on_terminal("ls", "--size", command=AT_ONCE)
        assert code == 0
        assert "Measuring" in text
        assert "web" in text.split("Measuring")[1]
        assert re.search(r"NAME +DRIVER", text)

    def test_is_not_shown_for_what_is_quick(self, web: Path) -> None:
        text, code = on_terminal("ls", "--size")
        assert code == 0
        assert "Measuring" not in text

    def test_tells_what_it_has_counted(self, web: Path) -> None:
        for number in range(600):
            (web / str(number)).touch()
        for command in (["df"], ["inspect", "web"]):
            text, code = on_terminal(*command, command=AT_ONCE)
            assert code == 0
            assert re.search(r"web: [\d.]+ KiB in 500 files", text)

    def test_is_not_in_the_way_of_what_is_printed(self, web: Path, tmp_path: Path) -> None:
        with (tmp_path / "out").open("w+") as out:
            text, code = on_terminal("ls", "--size", "--json", command=AT_ONCE, stdout=out.fileno())
            assert code == 0
            assert "Measuring" in text
            out.seek(0)
            assert json.load(out)[0]["name"] == "web"

    def test_is_not_shown_where_nobody_watches(self, web: Path) -> None:
        result = program("ls", "--size", command=AT_ONCE)
        assert (result.code, result.err) == (0, "")

    def test_is_not_shown_on_a_terminal_that_cannot(self, web: Path) -> None:
        text, code = on_terminal("ls", "--size", command=["env", "TERM=dumb", *AT_ONCE])
        assert code == 0
        assert "Measuring" not in text


@pytest.fixture
def read_only(web: Path, scope: Path) -> Iterator[Path]:
    """The scope, on a filesystem that has become read-only."""
    volfs("create", "gone")
    volfs("rm", "gone")
    subprocess.run(["mount", "--bind", scope, scope], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", scope], check=True)
        yield scope
    finally:
        subprocess.run(["umount", scope], check=True)


@needs_root
def test_a_read_only_scope_can_be_looked_at(read_only: Path) -> None:
    (row,) = columns("--size", "-f", "label=team")
    assert row["name"] == "web"
    assert names("--removed")
    assert volfs("inspect", "web").code == 0
    assert volfs("df").code == 0
    assert volfs("label", "web").out == "team=blue\n"
    for command in (["label", "web", "a=1"], ["prune", "--yes"], ["rm", "web"]):
        result = volfs(*command)
        assert result.code == 1
        assert "Read-only file system" in result.err
    assert names() == ["web"]


def test_a_volume_that_goes_meanwhile_is_left_out(
    web: Path, scope: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from volfs.store import VolumeStore

    volfs("create", "going")
    look = VolumeStore.list

    def list_and_remove(store: VolumeStore) -> object:
        volumes = look(store)
        store.remove("going")
        return volumes

    monkeypatch.setattr(VolumeStore, "list", list_and_remove)
    assert [row["name"] for row in columns("--size")] == ["web"]


def _du(path: Path) -> int:
    return int(subprocess.check_output(["du", "-s", "-B1", path], text=True).split()[0])
