"""The command import makes a volume of an archive."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.cli.copying import SIGNALS, run, staged
from tests.cli.running import names, on_terminal, volfs
from tests.conftest import wait_for
from tests.copies.trees import make_tree, seen
from tests.interpreter import PROGRAM, ROOT, Piped
from tests.local.scopes import age, hidden_entries

pytestmark = pytest.mark.any_level


@pytest.fixture
def archive(web: Path, tmp_path: Path) -> Path:
    """An archive of the volume ``web``, with a megabyte in it."""
    (web / "data").write_bytes(os.urandom(1 << 20))
    path = tmp_path / "web.tar"
    assert run("export", "web", "-o", path).code == 0
    return path


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
        with Piped("import", "web") as process:
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
        with Piped("import", "new") as process:
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
        with Piped("import", "new") as process:
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
