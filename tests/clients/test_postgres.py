"""PostgreSQL with its data directory in a volume: a benchmark run, a crash, a recovery."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.clients.programs import end, identity, require_root, run
from tests.clients.volumes import VolumeDir
from tests.conftest import wait_for

SETTINGS = """
listen_addresses = ''
fsync = on
full_page_writes = on
# Small, so that the short run passes through several checkpoints.
max_wal_size = 64MB
min_wal_size = 32MB
# Kept in the data directory: shared mappings of the volume, and nothing left in /dev/shm.
dynamic_shared_memory_type = mmap
"""


def _binaries() -> Path:
    """The newest installed version's programs; Debian keeps them off the PATH."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parts[-3])
    )
    if not found:
        pytest.skip("not installed: postgresql")
    return found[-1].parent


@dataclass
class Postgres:
    """A server on one data directory, run as the system user postgres."""

    binaries: Path
    data: Path
    sockets: Path
    user: int
    server: subprocess.Popen[str] | None = field(default=None, init=False)

    def program(self, name: str, *words: str | os.PathLike[str], fails: bool = False) -> str:
        """Run one of PostgreSQL's programs and return what it printed."""
        return run(self.binaries / name, *words, user=self.user, cwd=self.sockets, fails=fails)

    def connection(self) -> list[str]:
        return ["-h", str(self.sockets)]

    def query(self, sql: str) -> str:
        words = ["--no-psqlrc", "--tuples-only", "--no-align", "-c", sql, "postgres"]
        return self.program("psql", *self.connection(), *words).strip()

    def bench(self, *words: str) -> str:
        """Run pgbench to its end and return its report."""
        return self.program("pgbench", *self.connection(), *words, "postgres")

    def start(self) -> str:
        """Start the server, wait until it answers, and return its log."""
        log = self.sockets / "log"
        with log.open("w") as output:
            self.server = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.data, "-k", self.sockets],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.sockets,
                **identity(self.user),
            )
        server = self.server
        wait_for(
            lambda: server.poll() is not None or "ready to accept conn" in log.read_text(),
            "the database server",
        )
        assert server.poll() is None, log.read_text()
        return log.read_text()

    def stop(self) -> None:
        """Stop the server, ending sessions in an orderly way, with a checkpoint."""
        assert self.server
        assert end(self.server, by=signal.SIGINT) == 0, (self.sockets / "log").read_text()

    def kill(self) -> None:
        """End the postmaster and every process of it at once, by SIGKILL."""
        assert self.server
        # Stopped first, the postmaster can neither start more nor clean up after the dead.
        self.server.send_signal(signal.SIGSTOP)
        for pid in _children(self.server.pid):
            os.kill(pid, signal.SIGKILL)
        end(self.server)

    def clean_up(self) -> None:
        """Kill what runs, and free the shared memory that a killed server leaves behind."""
        if self.server and self.server.poll() is None:
            self.kill()
        lock = self.data / "postmaster.pid"
        if lock.exists():
            # Its seventh line is the key and the id of a System V segment; see postmaster.pid
            # in PostgreSQL's documentation of the database file layout.
            lines = lock.read_text().splitlines()
            if len(lines) > 6 and lines[6].split():
                run("ipcrm", "--shmem-id", lines[6].split()[1])


def _children(parent: int) -> list[int]:
    children = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            children.append(int(entry.parent.name))
    return children


@pytest.fixture
def postgres(volume: VolumeDir) -> Iterator[Postgres]:
    """A database cluster, made by initdb in a volume that belongs to its user."""
    require_root()
    binaries = _binaries()
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("there is no user called postgres")
    os.chown(volume.path, user.pw_uid, user.pw_uid)
    # Not under pytest's directory: that is closed to other users.
    sockets = Path(tempfile.mkdtemp(prefix="volfs-postgres-"))
    os.chown(sockets, user.pw_uid, user.pw_uid)
    postgres = Postgres(binaries, volume.path / "cluster", sockets, user.pw_uid)
    try:
        options = ["--data-checksums", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        postgres.program("initdb", "-D", postgres.data, *options)
        with (postgres.data / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS)
        yield postgres
    finally:
        postgres.clean_up()
        shutil.rmtree(sockets)


def assert_consistent(postgres: Postgres, acknowledged: int) -> int:
    """Every transaction moved one amount in all four tables; return how many there were.

    At least the ``acknowledged`` ones are there.
    """
    sums = postgres.query(
        "select (select sum(abalance) from pgbench_accounts),"
        " (select sum(tbalance) from pgbench_tellers),"
        " (select sum(bbalance) from pgbench_branches),"
        " (select sum(delta) from pgbench_history),"
        " (select count(*) from pgbench_history)"
    ).split("|")
    assert len(set(sums[:4])) == 1, sums
    assert int(sums[4]) >= acknowledged
    return int(sums[4])


def processed(report: str) -> int:
    """How many transactions pgbench had acknowledged."""
    found = re.search(r"actually processed: (\d+)", report)
    assert found, report
    return int(found[1])


@pytest.mark.timeout(300)
def test_benchmark_crash_and_recovery(postgres: Postgres, volume: VolumeDir) -> None:
    assert (volume.data / "cluster").stat().st_mode & 0o7777 == 0o700
    postgres.start()
    postgres.bench("--initialize", "--scale=5", "--quiet")
    # No vacuum before a run: it would empty the history that is compared.
    load = ["--no-vacuum", "--client=4", "--jobs=2"]
    done = processed(postgres.bench(*load, "--time=4"))
    assert done > 0
    before = assert_consistent(postgres, done)

    bench = subprocess.Popen(
        [postgres.binaries / "pgbench", *postgres.connection(), *load, "--time=60", "postgres"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=postgres.sockets,
        **identity(postgres.user),
    )
    try:
        wait_for(
            lambda: int(postgres.query("select count(*) from pgbench_history")) > before + 200,
            "transactions under way",
        )
        postgres.kill()
        report, _ = bench.communicate(timeout=30)
    finally:
        end(bench)
    assert "run was aborted" in report.lower(), report

    log = postgres.start()
    assert "database system was not properly shut down" in log
    after = assert_consistent(postgres, before + processed(report))
    assert after > before
    done = processed(postgres.bench(*load, "--transactions=50"))
    assert done == 200
    assert assert_consistent(postgres, after + done) == after + done
    postgres.stop()
    postgres.program("pg_checksums", "--check", "-D", postgres.data)
    state = postgres.program("pg_controldata", "-D", postgres.data)
    assert re.search(r"cluster state: +shut down$", state, re.MULTILINE)

    # The directory's mode keeps others out, and the server insists on that mode.
    assert "Permission denied" in run("ls", postgres.data, user=1000, fails=True)
    postgres.data.chmod(0o755)
    refused = postgres.program("postgres", "-D", postgres.data, fails=True)
    assert "has invalid permissions" in refused
