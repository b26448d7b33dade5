"""The commands that copy volumes: clone, export, import."""

from __future__ import annotations

import os
import pty
import re
import signal
import stat
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.children import needs_root
from tests.cli.running import PROGRAM, ROOT, Result, names, on_terminal, volfs
from tests.conftest import open_workspace, wait_for
from tests.copies.trees import make_tree, seen
from tests.filesystems import btrfs
from tests.local.scopes import age, hidden_entries

pytestmark = pytest.mark.any_level

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture
def archive(web: Path, tmp_path: Path) -> Path:
    """An archive of the volume ``web``, with a megabyte in it."""
    (web / "data").write_bytes(os.urandom(1 << 20))
    path = tmp_path / "web.tar"
    assert run("export", "web", "-o", path).code == 0
    return path


def run(*words: str | Path, data: bytes = b"") -> Result:
    """Run a command as a program that reads ``data``."""
    done = subprocess.run(
        [*PROGRAM, *words], input=data, capture_output=True, cwd=ROOT, check=False, timeout=60
    )
    return Result(done.returncode, os.fsdecode(done.stdout), done.stderr.decode())


@contextmanager
def started(*words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command at work, whose input and output are pipes."""
    process = subprocess.Popen(
        [*PROGRAM, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def busy(file: Path) -> Iterator[None]:
    """Somebody who changes a file all the time."""
    ended = threading.Event()

    def write() -> None:
        number = 0
        while not ended.wait(0.001):
            number += 1
            file.write_text(f"{number}")

    file.write_text("0")
    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def staged(scope: Path, pattern: str) -> list[Path]:
    """What is there of a volume that is not published yet."""
    return list((scope / "trash").glob(f".new-*/_data/{pattern}"))


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
        with started("clone", "web", "copy") as process:
            wait_for(lambda: staged(scope, "large"), "the copying to begin")
            begun = time.monotonic()
            process.send_signal(number)
            _, said = process.communicate(timeout=30)
            assert time.monotonic() - begun < 5
        assert process.returncode == code, said
        assert names() == ["web"]
        assert hidden_entries(scope) == []


class TestExport:
    def test_to_standard_output(self, web: Path, tmp_path: Path) -> None:
        result = run("export", "web")
        assert (result.code, result.err) == (0, "")
        (tmp_path / "tar").write_bytes(os.fsencode(result.out))
        with tarfile.open(tmp_path / "tar") as archive:
            assert archive.getnames() == [".", "./index.html"]

    def test_not_to_a_terminal(self, web: Path) -> None:
        shown, code = on_terminal("export", "web")
        assert code == 2
        assert "terminal" in shown

    def test_a_file_appears_when_it_is_complete(self, web: Path, tmp_path: Path) -> None:
        target = tmp_path / "out" / "web.tar"
        target.parent.mkdir()
        target.write_text("old")
        assert run("export", "nope", "-o", target).code == 4
        assert target.read_text() == "old"
        assert run("export", "web", "--output", target).code == 0
        assert tarfile.is_tarfile(target)
        assert target.stat().st_mode & 0o777 == 0o600
        assert os.listdir(target.parent) == ["web.tar"]
        assert run("export", "web", "-o", "/dev/full").code == 1
        assert run("export", "web", "-o", tmp_path / "nope" / "x").code == 1

    @pytest.mark.parametrize("there", [False, True])
    def test_the_file_is_on_disk_before_it_has_the_name(
        self, there: bool, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "web.tar"
        if there:
            target.write_text("old")
        steps: list[tuple[str, int, int]] = []
        fsync, rename = os.fsync, os.rename

        def note(step: str, status: os.stat_result) -> None:
            steps.append((step, status.st_ino, status.st_size * stat.S_ISREG(status.st_mode)))

        def watch_fsync(fd: int) -> None:
            fsync(fd)
            note("fsync", os.fstat(fd))

        def watch_rename(source: str, name: str, **directories: int) -> None:
            if not directories:
                note("rename", os.stat(source))
            rename(source, name, **directories)

        monkeypatch.setattr(os, "fsync", watch_fsync)
        monkeypatch.setattr(os, "rename", watch_rename)
        assert volfs("export", "web", "-o", target).code == 0
        number, size = target.stat().st_ino, target.stat().st_size
        assert size > 0
        last = len(steps) - 1 - [step for step, *_ in reversed(steps)].index("rename")
        assert steps[last] == ("rename", number, size)
        assert ("fsync", number, size) in steps[:last]
        assert ("fsync", tmp_path.stat().st_ino, 0) in steps[last:]

    def test_a_volume_that_changes_ends_as_tar_does(self, web: Path, tmp_path: Path) -> None:
        with busy(web / "busy"):
            result = run("export", "web", "-o", tmp_path / "tar")
        assert result.code == 1
        assert "web was changed while it was read" in result.err
        assert "the archive is not of one point in time" in result.err
        assert run("import", "again", "-i", tmp_path / "tar").code == 0

    @needs_root
    def test_with_reflinks_it_is_of_one_point_in_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever reads takes their time; the volume changes, and the archive does not."""
        with open_workspace() as workspace, btrfs(workspace / "btrfs") as place:
            scope = place / "scope"
            monkeypatch.setenv("VOLFS_SCOPE", str(scope))
            assert volfs("create", "web").code == 0
            data = scope / "volumes/web/_data"
            for name in ("a", "b", "c"):
                (data / name).write_bytes(b"old" + os.urandom(4 << 20))
            with started("export", "web") as process:
                assert process.stdout
                start = process.stdout.read(512)
                for name in ("a", "b", "c"):
                    (data / name).write_bytes(b"new")
                rest = process.stdout.read()
                assert process.wait() == 0
            (workspace / "tar").write_bytes(start + rest)
            with tarfile.open(workspace / "tar") as archive:
                sizes = [member.size for member in archive if member.isfile()]
            assert sizes == [(4 << 20) + 3] * 3
            assert hidden_entries(scope) == []

    def test_nobody_reads_it(self, web: Path, scope: Path) -> None:
        (web / "data").write_bytes(bytes(8 << 20))
        with started("export", "web") as process:
            assert process.stdout
            process.stdout.close()
            assert process.wait(30) == 1
        assert hidden_entries(scope) == []

    def test_broken_off_it_leaves_no_file(self, web: Path, tmp_path: Path, scope: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        (web / "data").write_bytes(bytes(8 << 20))
        with (
            started("export", "web", "-o", tmp_path / "fifo") as process,
            (tmp_path / "fifo").open("rb") as reader,
        ):
            assert reader.read(512)
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        assert hidden_entries(scope) == []

    def test_a_socket_is_told(self, web: Path) -> None:
        make_tree(web)
        result = run("export", "web")
        assert result.code == 0
        assert result.err == "volfs: tar: ./socket: socket ignored\n"


class TestImport:
    def test_what_was_exported(self, web: Path, scope: Path) -> None:
        make_tree(web, sockets=False)
        command = "{0} export web | {0} import --label a=1 --opt path=native again"
        done = subprocess.run(
            ["sh", "-c", command.format(" ".join(PROGRAM))],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "again\n", "")
        assert seen(scope / "volumes/again/_data") == seen(web)
        (shown,) = volfs("inspect", "--json", "again").json
        assert (shown["labels"], shown["options"]) == ({"a": "1"}, {"path": "native"})

    def test_from_a_file_into_a_new_scope(self, archive: Path, tmp_path: Path) -> None:
        scope = tmp_path / "other"
        result = run(
            *("import", "--scope", scope, "-i", archive, "--json", "--opt", "mode=0710", "new")
        )
        assert result.json["name"] == "new"
        data = scope / "volumes/new/_data"
        assert data.stat().st_mode & 0o777 == 0o710
        assert (data / "index.html").read_text() == "hello"

    def test_a_taken_name_is_refused_before_anything_is_read(self, web: Path) -> None:
        with started("import", "web") as process:
            # Nothing is written to it, so whoever reads would wait.
            assert process.wait(30) == 5
        assert (web / "index.html").exists()

    @pytest.mark.parametrize("name", [".hidden", "a/b"])
    def test_impossible_names(self, scope: Path, name: str) -> None:
        assert run("import", name).code == 3

    def test_options(self, archive: Path) -> None:
        assert run("import", "-i", archive, "--opt", "color=red", "new").code == 3
        assert run("import", "-i", archive, "--opt", "from=web", "new").code == 3
        assert run("import", "-i", archive.with_name("nope"), "new").code == 1
        assert names() == ["web"]

    def test_cut_short_it_leaves_no_volume(self, archive: Path, scope: Path) -> None:
        data = archive.read_bytes()
        end = len(data.rstrip(b"\0"))
        for cut in (0, 300, 1024, 500_000, end + -end % 512):
            result = run("import", "new", data=data[:cut])
            assert result.code == 1
            assert result.err.startswith("volfs: ")
        assert names() == ["web"]
        assert hidden_entries(scope) == []

    @pytest.mark.parametrize(("number", "code"), SIGNALS)
    @pytest.mark.parametrize("compressed", [False, True])
    def test_broken_off_it_leaves_nothing(
        self, archive: Path, scope: Path, number: int, code: int, compressed: bool
    ) -> None:
        data = archive.read_bytes()
        if compressed:
            done = subprocess.run(["gzip", "-1"], input=data, stdout=subprocess.PIPE, check=True)
            data = done.stdout
        with started("import", "new") as process:
            assert process.stdin
            process.stdin.write(data[: len(data) - 100_000])
            process.stdin.flush()
            wait_for(lambda: staged(scope, "data"), "the unpacking to begin")
            process.send_signal(number)
            assert process.wait(10) == code
        assert names() == ["web"]
        assert hidden_entries(scope) == []

    def test_killed_it_leaves_no_volume_and_the_next_one_cleans_up(
        self, archive: Path, scope: Path
    ) -> None:
        data = archive.read_bytes()
        with started("import", "new") as process:
            assert process.stdin
            process.stdin.write(data[:600_000])
            process.stdin.flush()
            wait_for(lambda: staged(scope, "data"), "the unpacking to begin")
            process.kill()
            process.wait()
        assert names() == ["web"]
        assert len(hidden_entries(scope)) == 1
        age(scope)
        assert run("import", "new", data=data).code == 0
        assert hidden_entries(scope) == []

    def test_not_from_a_terminal(self, scope: Path) -> None:
        shown, code = on_terminal("import", "new")
        assert code == 2
        assert "terminal" in shown

    def test_progress_is_shown_on_a_terminal(self, archive: Path) -> None:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*PROGRAM, "import", "new"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(theirs)
        shown = b""

        def read() -> None:
            nonlocal shown
            try:
                while part := os.read(ours, 65536):
                    shown += part
            except OSError:
                pass  # EIO: the other end is closed

        reader = threading.Thread(target=read)
        reader.start()
        data = archive.read_bytes()
        try:
            assert process.stdin
            while b"importing new" not in shown:
                # A little at a time, until it has taken long enough.
                part, data = data[:20_000], data[20_000:]
                assert part, "it was all read, and no bar was shown"
                process.stdin.write(part)
                process.stdin.flush()
                time.sleep(0.05)
            process.stdin.write(data)
            process.stdin.close()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
            reader.join()
            os.close(ours)
        assert b"/s" in shown
        assert names() == ["new", "web"]
