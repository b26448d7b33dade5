"""The command export writes a volume to an archive."""

from __future__ import annotations

import os
import signal
import stat
import tarfile
from pathlib import Path

import pytest

from tests.children import needs_root
from tests.cli.copying import busy, run
from tests.cli.running import on_terminal, volfs
from tests.conftest import open_workspace
from tests.copies.trees import make_tree
from tests.filesystems import btrfs
from tests.interpreter import Piped
from tests.local.scopes import hidden_entries

pytestmark = pytest.mark.any_level


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
            with Piped("export", "web") as process:
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

    def test_a_missing_directory_is_not_made(self, web: Path, tmp_path: Path) -> None:
        result = volfs("export", "web", "-o", tmp_path / "nowhere/web.tar")
        assert result.code == 1
        assert f"there is no directory {tmp_path}/nowhere: make it, or" in result.err
        assert not (tmp_path / "nowhere").exists()

    def test_nobody_reads_it(self, web: Path, scope: Path) -> None:
        (web / "data").write_bytes(bytes(8 << 20))
        with Piped("export", "web") as process:
            process.stdout.close()
            assert process.wait(30) == 1
        assert hidden_entries(scope) == []

    def test_broken_off_it_leaves_no_file(self, web: Path, tmp_path: Path, scope: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        (web / "data").write_bytes(bytes(8 << 20))
        with (
            Piped("export", "web", "-o", tmp_path / "fifo") as process,
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
