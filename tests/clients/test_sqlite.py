"""SQLite used by several processes at once: shared memory in WAL mode, locks without it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.programs import end, require, run
from tests.clients.volumes import VolumeDir
from tests.conftest import Mounted, MountFactory, wait_for

WRITERS = 2
ROWS = 120

WRITER = """
import sqlite3, sys
path, name, rows, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
database = sqlite3.connect(path, timeout=60, isolation_level=None)
assert database.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
database.execute("pragma synchronous=normal")
print("ready", flush=True)
sys.stdin.readline()
for number in range(rows):
    database.execute("begin immediate")
    (total,) = database.execute("select value from total").fetchone()
    database.execute("insert into entry values (?, ?, ?)", (name, number, "x" * 500))
    database.execute("update total set value = ?", (total + 1,))
    database.execute("commit")
print("done", flush=True)
"""
"""Adds rows, and to a counter that it reads and writes back: a lost lock is a lost update."""


class Writers:
    """Processes that write to one database; all are ended with the test."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, path: Path, mode: str, *, rows: int = ROWS) -> subprocess.Popen[str]:
        """Start one more, waiting before its first row."""
        name = f"writer{len(self.processes)}"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, name, str(rows), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        assert process.stdout
        line = process.stdout.readline()
        assert line == "ready\n", line + process.stdout.read()
        return process

    def go(self) -> None:
        for process in self.processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()


@pytest.fixture
def writers(tree: Mounted) -> Iterator[Writers]:
    writers = Writers()
    # Asking for the tree has the writers ended before it is.
    yield writers
    for process in writers.processes:
        end(process)


def create(path: Path, mode: str) -> sqlite3.Connection:
    """Make the database in a journal mode and return a connection to it."""
    database = sqlite3.connect(path, timeout=60, isolation_level=None)
    database.execute(f"pragma journal_mode={mode}")
    database.execute("create table entry (writer text, number integer, payload text)")
    database.execute("create index by_number on entry (number, writer)")
    database.execute("create table total (value integer)")
    database.execute("insert into total values (0)")
    return database


def totals(database: sqlite3.Connection) -> tuple[int, int]:
    """The number of rows, and the counter, as of one moment."""
    row = database.execute("select (select count(*) from entry), value from total").fetchone()
    return row[0], row[1]


def assert_intact(path: Path) -> None:
    """SQLite's own program, in a process that has not seen the database, finds it whole."""
    require("sqlite3")
    assert run("sqlite3", path, "pragma integrity_check").strip() == "ok"


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate"])
def test_two_processes_write_at_once(volume: VolumeDir, writers: Writers, mode: str) -> None:
    path = volume.path / "database"
    reader = create(path, mode)
    working = [writers.start(path, mode) for _ in range(WRITERS)]
    if mode == "wal":
        assert (volume.path / "database-shm").stat().st_size > 0
    writers.go()
    seen = 0
    while any(process.poll() is None for process in working):
        # What a reader sees meanwhile is a state between two transactions, never an older one.
        rows, total = totals(reader)
        assert rows == total >= seen
        seen = total
    for process in working:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert totals(reader) == (WRITERS * ROWS, WRITERS * ROWS)
    reader.close()
    assert_intact(path)
    # The last one out has put the log into the database, which is whole behind the mount too.
    assert_intact(volume.data / "database")


@pytest.mark.needs_passthrough
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_one_writes_in_the_tree_and_one_behind_it(
    mount: MountFactory, writers: Writers, mode: str
) -> None:
    """As a container that has the volume and one that has the real data path.

    They share the memory of WAL mode, and locks hold between them. Nothing may be remembered of
    names (volfs-tree(7)): a journal that the other one has deleted would be taken for a crash's.
    """
    volume = VolumeDir.make(mount(cache="never"), "vol")
    reader = create(volume.path / "database", mode)
    working = [writers.start(volume.side(side) / "database", mode) for side in ("tree", "data")]
    writers.go()
    seen = 0
    while any(process.poll() is None for process in working):
        rows, total = totals(reader)
        assert rows == total >= seen
        seen = total
    for process in working:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert totals(reader) == (2 * ROWS, 2 * ROWS)
    reader.close()
    assert_intact(volume.path / "database")
    assert_intact(volume.data / "database")


def test_lock_of_one_process_keeps_the_other_out(volume: VolumeDir) -> None:
    path = volume.path / "database"
    holder = create(path, "delete")
    holder.execute("begin exclusive")
    words = ("sqlite3", path, "insert into total values (1)")
    require("sqlite3")
    assert "database is locked" in run(*words, fails=True)
    holder.execute("commit")
    run(*words)
    assert holder.execute("select count(*) from total").fetchone() == (2,)
    holder.close()


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_killed_writer_leaves_a_whole_database(
    volume: VolumeDir, writers: Writers, mode: str
) -> None:
    path = volume.path / "database"
    reader = create(path, mode)
    killed = writers.start(path, mode, rows=1_000_000)
    writers.go()
    wait_for(lambda: totals(reader)[0] > 50, "the writer's first rows")
    before = totals(reader)[0]
    end(killed, by=signal.SIGKILL)
    rows, total = totals(reader)
    assert rows == total >= before
    reader.execute("insert into entry values ('reader', 0, '')")
    reader.close()
    assert_intact(path)
