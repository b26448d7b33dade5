"""What a workload is: it prepares a directory behind the mount, then works in it through it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from benchmarks.filesystems import BenchError, Caching

MIB = 1 << 20
TIME_LIMIT = 300.0
"""Seconds one run of one workload may take before it counts as failed."""


class Group(Enum):
    """Workloads that belong together; the value is the heading they are shown under."""

    DATA = "Data path"
    DURABLE = "Fsync and databases"
    UNCACHED = "Metadata, uncached"
    CACHED = "Metadata, cached"
    FILES = "Files"


_CACHING = {Group.UNCACHED: Caching.NEVER, Group.CACHED: Caching.ALWAYS}
_BY_CALL = (Group.UNCACHED, Group.CACHED)
_OPEN_FILES = (Group.DATA, Group.DURABLE)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; data sizes in bytes, times in seconds."""

    names: int = 500
    listing: int = 5000
    files: int = 20_000
    repository: int = 3000
    data: int = 128 * MIB
    small_io: int = 8 * MIB
    io_warm_up: float = 0.4
    io_time: float = 0.6
    syncs: int = 200
    database_scale: int = 5
    database_time: int = 2


QUICK = Sizes(
    names=300, listing=2000, files=1000, repository=300, data=32 * MIB, small_io=2 * MIB,
    io_warm_up=0.15, io_time=0.25, syncs=50, database_scale=1, database_time=1,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tools:
    """What workloads run with: programs and sources, all outside of the filesystems measured.

    ``scratch`` is a directory for what they need besides.
    """

    client: Path
    scratch: Path
    sizes: Sizes

    @property
    def tar(self) -> Path:
        return self.scratch / "files.tar"

    @property
    def repository(self) -> Path:
        return self.scratch / "repository.git"


@dataclass(frozen=True, slots=True)
class Timing:
    """``ns`` nanoseconds for ``calls`` calls, entries, I/Os or whole runs."""

    ns: float
    calls: int


Work = Callable[[Tools, Path], Timing]
"""Something done in a directory."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One line of the table.

    ``prepare`` fills an empty directory on the backing filesystem, unseen by the filesystem under
    test; ``run`` then works in that directory through a fresh mount, after an untimed ``warm_up``
    if the first time is not to count. A workload that names a ``fixture`` only reads, or overwrites
    in place, so its directory is made once and shared. ``unit`` is what one call of its timing is.
    """

    name: str
    title: str
    group: Group
    unit: str
    prepare: Callable[[Tools, Path], None]
    run: Work
    warm_up: Work | None = None
    fixture: str | None = None

    @property
    def caching(self) -> Caching:
        return _CACHING.get(self.group, Caching.AUTO)

    @property
    def quick(self) -> bool:
        """Whether it takes so little time that it can be repeated more often."""
        return self.group in _BY_CALL

    @property
    def countable(self) -> bool:
        """Whether it does nothing but what it times, so that requests can be counted per call."""
        return not self.open_files

    @property
    def postgres(self) -> bool:
        return self.name.startswith("postgres/")

    @property
    def open_files(self) -> bool:
        """Whether it is about what happens to files that are open."""
        return self.group in _OPEN_FILES


def run_client(tools: Tools, where: Path, operation: str, count: int, passes: int = 1) -> Timing:
    """Run the C client in ``where``; raises BenchError with its complaint if a call fails."""
    done = checked([str(tools.client), operation, str(count), str(passes)], where)
    ns, calls = done.stdout.split()
    return Timing(int(ns), int(calls))


def client(operation: str, passes: int = 1) -> Work:
    """The C client's ``operation`` on as many names as the sizes say."""
    return lambda tools, where: run_client(tools, where, operation, tools.sizes.names, passes)


def preparing(*operations: str) -> Callable[[Tools, Path], None]:
    """A preparation by the C client: these operations one after the other."""

    def prepare(tools: Tools, directory: Path) -> None:
        for operation in operations:
            run_client(tools, directory, operation, tools.sizes.names)

    return prepare


def checked(
    command: Sequence[str],
    where: Path,
    env: dict[str, str] | None = None,
    user: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in ``where``, as ``user`` if given; raises BenchError if it fails."""
    program = Path(command[0]).name
    groups: list[int] | None = None if user is None else []
    try:
        return subprocess.run(
            command, cwd=where, env=env, check=True, text=True, capture_output=True,
            timeout=TIME_LIMIT, user=user, group=user, extra_groups=groups,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{program}: {error.stderr.strip()[-300:]}") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"{program}: not done after {TIME_LIMIT:.0f} s") from None
    except OSError as error:
        raise BenchError(f"{program}: {error}") from None


def timed(
    command: Sequence[str],
    where: Path,
    env: dict[str, str] | None = None,
    user: int | None = None,
) -> Timing:
    """As ``checked``, with the time it takes."""
    start = time.perf_counter_ns()
    checked(command, where, env, user)
    return Timing(time.perf_counter_ns() - start, 1)
