"""A PostgreSQL server on a cluster somewhere, as a user who is not root."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.filesystems import BenchError, wait_until
from benchmarks.workloads import Timing, Tools, checked

_USER = "postgres"
_SETTINGS = """
listen_addresses = ''
fsync = on
# Small, so that reading is the filesystem's work, and from its page cache.
shared_buffers = 8MB
# Nothing in the background.
autovacuum = off
checkpoint_timeout = 1h
max_wal_size = 2GB
"""
_WARM_UP = 100
"""Transactions before those that count."""


@cache
def _programs() -> Path | None:
    """The directory of the newest version's programs; Debian keeps them off the PATH."""
    found = Path("/usr/lib/postgresql").glob("*/bin/pgbench")
    newest = max(found, key=lambda path: float(path.parts[-3]), default=None)
    if newest is None or not (newest.parent / "initdb").exists():
        return None
    return newest.parent


@cache
def _user() -> int | None:
    """The user to run it as instead of root, as whom it refuses to run; None if not root."""
    return pwd.getpwnam(_USER).pw_uid if os.geteuid() == 0 else None


def missing() -> str | None:
    """Why there can be no server here, or None if there can."""
    if _programs() is None:
        return "not installed: postgresql"
    try:
        _user()
    except KeyError:
        return f"there is no user called {_USER}"
    return None


def give(directory: Path) -> None:
    """Make ``directory`` the server's."""
    user = _user()
    if user is not None:
        os.chown(directory, user, user)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; ``sockets`` is the directory of its socket."""

    sockets: Path

    def bench(self, script: str, seconds: int) -> Timing:
        """The time of a transaction of pgbench's ``script`` by one client."""
        words = ["-n", "-b", script]
        self.run("pgbench", *words, "-t", str(_WARM_UP))
        report = self.run("pgbench", *words, "-T", str(seconds))
        rate = re.search(r"^tps = ([\d.]+)", report, re.MULTILINE)
        count = re.search(r"actually processed: (\d+)", report)
        if not rate or not count or not float(rate[1]):
            raise BenchError(f"pgbench: {report[-300:]}")
        return Timing(int(count[1]) * 1e9 / float(rate[1]), int(count[1]))

    def fill(self, scale: int) -> Timing:
        """Make pgbench's tables: 100,000 rows for each of ``scale``."""
        timing, _ = _run("pgbench", "-i", "-q", "-s", str(scale), *self._connection())
        return timing

    def run(self, program: str, *words: str) -> str:
        return _run(program, *words, *self._connection())[1]

    def _connection(self) -> list[str]:
        return ["-h", str(self.sockets), "postgres"]


def _run(program: str, *words: str) -> tuple[Timing, str]:
    programs = _programs()
    if programs is None:
        raise BenchError("not installed: postgresql")
    start = time.perf_counter_ns()
    done = checked([str(programs / program), *words], Path("/"), user=_user())
    return Timing(time.perf_counter_ns() - start, 1), done.stdout


def initialise(tools: Tools, cluster: Path) -> Timing:
    """Make a cluster and pgbench's tables in it, all synced as usual; the time of both."""
    options = ["--auth=trust", "--encoding=UTF8", "--locale=C"]
    made, _ = _run("initdb", "-D", str(cluster), *options)
    with (cluster / "postgresql.conf").open("a") as settings:
        settings.write(_SETTINGS)
    with server(tools, cluster) as running:
        filled = running.fill(tools.sizes.database_scale)
    return Timing(made.ns + filled.ns, 1)


@contextmanager
def server(tools: Tools, cluster: Path) -> Iterator[Server]:
    """A server on ``cluster``, ended whatever happens; raises BenchError if it does not start."""
    sockets = Path(tempfile.mkdtemp(prefix="pg-", dir=tools.scratch))
    user, log = _user(), sockets / "log"
    groups: list[int] | None = None if user is None else []
    give(sockets)
    # Its own session: Ctrl-C is for the benchmark, which then ends it.
    with log.open("w") as output:
        process = subprocess.Popen(
            [f"{_programs()}/postgres", "-D", cluster, "-k", sockets],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/",
            start_new_session=True, user=user, group=user, extra_groups=groups,
        )  # fmt: skip
    try:
        wait_until(
            lambda: process.poll() is not None or "ready to accept connections" in log.read_text()
        )
        if process.poll() is not None:
            raise BenchError(f"postgres: {log.read_text().strip()[-300:]}")
        yield Server(sockets)
    finally:
        _end(process)
        shutil.rmtree(sockets, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, else the immediate one, which takes its children along too, else by force."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        process.send_signal(number)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            continue
        return
