"""The filesystems compared, and how each one is mounted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
VOLUME = "bench"
"""The volume everything happens in."""
START_LIMIT = 30.0
"""Seconds a filesystem may take to mount or to end."""


class BenchError(Exception):
    """The benchmark cannot go on, or one filesystem cannot; the message says why."""


class Caching(Enum):
    """How long the kernel may keep names and attributes, the same for every filesystem."""

    NEVER = 0
    """0 s: every operation reaches the daemon."""
    AUTO = 1
    """1 s for attributes, names and, where the filesystem can, absent names."""
    ALWAYS = 86400
    """A day for these, and whatever else each has to offer for listings and links."""


@dataclass(frozen=True, slots=True)
class Site:
    """The directories of one run.

    ``scope`` is volfs's scope; its volume's data is what every peer binds too, so that all work
    on the same directories at the same depth. ``mountpoint`` is where each is mounted in turn,
    ``tools`` holds the programs compiled for the run, ``log`` takes what daemons print.
    """

    scope: Path
    mountpoint: Path
    tools: Path
    log: Path

    @property
    def data(self) -> Path:
        """The data path of the volume, as the backing filesystem has it."""
        return self.scope / "volumes" / VOLUME / "_data"


@dataclass(frozen=True, slots=True)
class FileSystem:
    """One filesystem to measure.

    ``command`` gives the command line that mounts it in the foreground; None for the bare
    directory. ``inside`` is the path from its mount point to the volume's data. ``data_only``:
    it differs from another one only in what happens to open files, and is measured only there.
    """

    name: str
    command: Callable[[Site, Caching], list[str]] | None
    inside: str
    data_only: bool = False


@dataclass(frozen=True, slots=True)
class Mounted:
    """A filesystem in place: ``data`` is the volume's data seen through it, ``pid`` its daemon."""

    data: Path
    top: Path
    pid: int | None = None

    def counters(self) -> dict[str, Any] | None:
        """What volfs says of itself; None of other filesystems."""
        try:
            counters: dict[str, Any] = json.loads(os.getxattr(self.top, "volfs.stats"))
        except OSError:
            return None
        return counters

    def daemon_ns(self) -> int:
        """Processor time the daemon has used so far, all threads, in nanoseconds."""
        if self.pid is None:
            return 0
        # The clock of a whole process, as clock_getcpuclockid(3) makes it of a pid.
        return time.clock_gettime_ns((~self.pid << 3) | 2)


def _volfs(
    site: Site, caching: Caching, without: str = "", python: str = sys.executable
) -> list[str]:
    options = ",".join(filter(None, (f"cache={caching.name.lower()}", without)))
    mount = ["mount", "-f", str(site.scope), str(site.mountpoint), "-o", options]
    # -P: the volfs that this Python has installed, not the one in the working directory.
    return [python, "-P", "-m", "volfs", *mount]


def _bindfs(site: Site, caching: Caching) -> list[str]:
    t = caching.value
    options = f"attr_timeout={t},entry_timeout={t},negative_timeout={t}"
    if _bindfs_has_fuse2():
        # Else it is sent every write in pieces of 4 KiB; FUSE 3 knows only big ones.
        options += ",big_writes"
    return ["bindfs", "-f", "-o", options, str(site.data.parent), str(site.mountpoint)]


@cache
def _bindfs_has_fuse2() -> bool:
    done = subprocess.run(["bindfs", "--fuse-version"], capture_output=True, text=True, check=False)
    return " version 2." in done.stdout


def _mergerfs(site: Site, caching: Caching) -> list[str]:
    t = caching.value
    # One thread: faster for one client than the default of several.
    options = f"cache.attr={t},cache.entry={t},cache.negative_entry={t},threads=1"
    if caching is Caching.ALWAYS:
        options += ",cache.readdir=true,cache.symlinks=true"
    if os.geteuid() == 0:
        options += ",allow_other"
    return ["mergerfs", "-f", "-o", options, str(site.data.parent), str(site.mountpoint)]


def _passthrough_ll(site: Site, caching: Caching) -> list[str]:
    # cache=auto with a timeout rather than cache=never, which would also turn off the page cache;
    # default_permissions and allow_other, which the others set themselves for root;
    # -s for one thread, faster for one client.
    policy = "always" if caching is Caching.ALWAYS else "auto"
    options = f"source={site.data.parent},cache={policy},timeout={caching.value}"
    options += ",default_permissions"
    if os.geteuid() == 0:
        options += ",allow_other"
    return [str(site.tools / "passthrough_ll"), "-f", "-s", "-o", options, str(site.mountpoint)]


NATIVE = "native"
VOLFS = "volfs"
TAP = "volfs-tap"
OTHER = "volfs-other"
PEERS = ("bindfs", "mergerfs", "passthrough_ll")
"""In none of them does the kernel read and write files directly."""

FILESYSTEMS = {
    fs.name: fs
    for fs in (
        FileSystem(NATIVE, None, ""),
        FileSystem(VOLFS, _volfs, VOLUME),
        FileSystem(TAP, partial(_volfs, without="no-passthrough"), VOLUME, data_only=True),
        FileSystem("volfs-plain", partial(_volfs, without="no-tap"), VOLUME),
        FileSystem("bindfs", _bindfs, "_data"),
        FileSystem("mergerfs", _mergerfs, "_data"),
        FileSystem("passthrough_ll", _passthrough_ll, "_data"),
    )
}


def other_checkout(directory: Path) -> FileSystem:
    """The volfs of another checkout, which scripts/quickstart or scripts/test installed there.

    Raises BenchError where there is none.
    """
    python = directory.resolve() / ".venv/bin/python"
    if not python.exists():
        raise BenchError(f"there is no {python}: run scripts/quickstart in {directory} first")
    return FileSystem(OTHER, partial(_volfs, python=str(python)), VOLUME)


DEFAULT = (VOLFS, TAP, *PEERS)
"""Measured beside native unless others are asked for."""


@contextmanager
def mounted(
    fs: FileSystem, site: Site, caching: Caching, cpu: int | None, *, make_volume: bool = False
) -> Iterator[Mounted]:
    """``fs`` freshly mounted with its daemon pinned to ``cpu``; unmounted at the end.

    Raises BenchError, with the end of the daemon's log, if it does not come up.
    """
    if fs.command is None:
        with _bound(site) as data:
            yield Mounted(data, data)
        return
    command = fs.command(site, caching)
    if cpu is not None:
        command = ["taskset", "-c", str(cpu), *command]
    with site.log.open("w") as log:
        # Its own session: Ctrl-C must not end it before it is unmounted.
        daemon = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=REPOSITORY, start_new_session=True
        )
    try:
        wait_until(lambda: _is_mountpoint(site.mountpoint) or daemon.poll() is not None)
        if daemon.poll() is not None or not _is_mountpoint(site.mountpoint):
            raise BenchError(f"{fs.name} did not mount:\n{log_tail(site.log)}")
        data = site.mountpoint / fs.inside
        if make_volume and not data.exists():
            data.mkdir()
        yield Mounted(data, site.mountpoint, daemon.pid)
    finally:
        _end(site.mountpoint, daemon)


@contextmanager
def _bound(site: Site) -> Iterator[Path]:
    """The bare directory, for root at the mount point, where other users get to it as well."""
    if os.geteuid() != 0:
        yield site.data
        return
    subprocess.run(["mount", "--bind", site.data, site.mountpoint], check=True)
    try:
        yield site.mountpoint
    finally:
        unmount(site.mountpoint)


def _end(mountpoint: Path, daemon: subprocess.Popen[bytes]) -> None:
    """Unmount and wait for the daemon to end; by force if it will not."""
    if not _is_mountpoint(mountpoint):
        daemon.terminate()  # still on its way up
    unmount(mountpoint)
    try:
        daemon.wait(timeout=5)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    unmount(mountpoint)


def unmount(mountpoint: Path) -> None:
    """Unmount if mounted, trying for 3 s while it is busy, then lazily."""
    if not wait_until(lambda: not _is_mountpoint(mountpoint) or _umount(mountpoint), limit=3):
        _umount(mountpoint, "-l", "-z")


def _is_mountpoint(path: Path) -> bool:
    # Read rather than stat: this must not wait for a daemon that is stuck or gone.
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(path) for line in lines)


def _umount(mountpoint: Path, lazy: str = "", lazy_as_user: str = "") -> bool:
    if os.geteuid() == 0:
        command = ["umount", lazy, str(mountpoint)]
    else:
        command = ["fusermount3", "-u", lazy_as_user, str(mountpoint)]
    command = [argument for argument in command if argument]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def wait_until(condition: Callable[[], bool], limit: float = START_LIMIT) -> bool:
    """Wait for ``condition``; False if it does not hold after ``limit`` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def log_tail(log: Path, lines: int = 15) -> str:
    """The last that a daemon said."""
    text = log.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in text) or "    (it printed nothing)"
