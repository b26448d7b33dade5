"""Fixtures for real mounts: a daemon of its own for each test that asks, checked when it ends."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
import pwd
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests import forking, interpreter, levels
from tests.children import CLONE_NEWNS, MS_REC_PRIVATE, USER, run_as
from tests.daemons import DEADLINE, ServiceManager
from tests.filesystems import btrfs, scatter, xfs
from tests.interpreter import Process, User
from tests.unprivileged import MS_BIND, shared
from volfs.linux import syscalls

MS_REMOUNT = 32
PR_CAPBSET_DROP = 24

IDLE = {
    "inodes": 1,
    "lookups": 0,
    "descriptors": 0,
    "open_files": 0,
    "open_directories": 0,
    "backing_ids": 0,
}
"""What a daemon counts of a tree that nobody uses."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--level",
        choices=levels.LEVELS,
        default="passthrough",
        help="serve the mounted trees at this level (default: passthrough)",
    )


def pytest_configure(config: pytest.Config) -> None:
    levels.choose(config.getoption("--level"))
    # What is ignored here, as nohup(1) and some services have it, is ignored by what is executed.
    # (Python itself ignores SIGPIPE and SIGXFSZ, and sets them back for what it executes.)
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    forking.give_back_what_is_large()
    if os.geteuid() == 0:
        isolate()


def pytest_unconfigure() -> None:
    interpreter.close()
    with suppress(OSError):  # what a test could not remove stays
        workspaces().rmdir()


def isolate() -> None:
    """Give this process a mount namespace of its own, in which USER has a name.

    Of several workers, none gets copies of another's mounts into the namespaces that its tests
    make, which would keep them in use. And fusermount3(1) mounts only for users with a name.
    """
    syscalls.unshare(CLONE_NEWNS)
    syscalls.mount(b"", b"/", b"", MS_REC_PRIVATE, b"")
    try:
        pwd.getpwuid(USER)
    except KeyError:
        users = Path("/etc/passwd")
        with tempfile.NamedTemporaryFile("w", prefix="volfs-test-") as copy:
            copy.write(f"{users.read_text()}volfs-test:x:{USER}:{USER}::/:/bin/sh\n")
            copy.flush()
            os.chmod(copy.name, 0o644)
            syscalls.mount(copy.name.encode(), os.fsencode(users), b"", MS_BIND, b"")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a higher level than the chosen one.

    By what was chosen, never by what is in effect: a tap that is missing has to fail.
    """
    needs: dict[levels.Level, str] = {"passthrough": "needs passthrough", "tap": "needs the tap"}
    missing = {level: reason for level, reason in needs.items() if not levels.reaches(level)}
    for item in items:
        for level, reason in missing.items():
            if item.get_closest_marker(f"needs_{level}"):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    forking.settle()


def wait_for(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> None:
    """Poll until ``condition()`` is true; fail after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline} s in vain for {what}")
        time.sleep(0.01)


def open_descriptors() -> int:
    """How many descriptors this process has; none is left that only waits to be collected.

    The interpreter, which is started when first needed, does not count.
    """
    gc.collect()
    return len(os.listdir("/proc/self/fd")) - interpreter.descriptors()


@pytest.fixture
def nothing_stays_open() -> Iterator[None]:
    """As many descriptors are open after the test as before."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def volfs(scope: Path, *arguments: str) -> str:
    """Run a ``volfs`` command on a scope and return what it printed."""
    done = interpreter.run(*arguments, environment={"VOLFS_SCOPE": str(scope)})
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Mounted:
    """A running daemon and its tree."""

    scope: Path
    mnt: Path
    log_path: Path
    process: Process
    uid: int
    level: levels.Level
    """The level at which the tree has to be served."""
    allow_warnings: bool = False
    stopped: bool = field(default=False, init=False)
    descriptors_when_ready: int = field(default=0, init=False)

    @property
    def log(self) -> str:
        """Everything the daemon has logged so far."""
        return self.log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self.process.pid

    def data(self, volume: str) -> Path:
        """The real data path of a volume."""
        return self.scope / "volumes" / volume / "_data"

    def statistics(self) -> dict[str, Any]:
        """What the daemon counts (the volfs.stats attribute of the root)."""
        counters: dict[str, Any] = json.loads(os.getxattr(self.mnt, "volfs.stats"))
        return counters

    def assert_level(self) -> None:
        """The tree is served at the level at which it has to be."""
        # What another user mounted not even root may ask.
        told = run_as(self.statistics, self.uid) if self.uid else self.statistics()
        found = told["level"]
        assert found == self.level, f"served at level {found}, not {self.level}; log:\n{self.log}"

    def drop_caches(self) -> None:
        """Make the kernel forget what it caches of this mount (a remount does)."""
        syscalls.mount(b"", os.fsencode(self.mnt), b"", MS_REMOUNT, b"")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the daemon and check how it ended. Done by the fixture when a test has not."""
        if self.stopped:
            return
        self.stopped = True
        leaks: object = None
        if (
            is_mounted(self.mnt)
            and self.process.poll() is None
            and os.geteuid() == 0
            and self.uid == 0
        ):
            leaks = self._leaks()
        if is_mounted(self.mnt) and self.process.poll() is None:
            self.process.send_signal(number)  # else it is ending by itself
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        still = is_mounted(self.mnt)
        if still:
            syscalls.umount2(os.fsencode(self.mnt), syscalls.MNT_DETACH)
        log = self.log
        assert code == 0, f"the daemon ended with {code}; its log:\n{log}"
        assert not still, f"the mount outlived the daemon; its log:\n{log}"
        assert not leaks, f"still held when nothing is used any more: {leaks}"
        unpublished = list(self.scope.glob("trash/.new-*"))
        assert not unpublished, f"begun and never finished: {unpublished}"
        if not self.allow_warnings:
            bad = [line for line in log.splitlines() if _is_warning(line)]
            assert not bad, "unexpected in the daemon's log:\n" + log

    def _leaks(self) -> object:
        end = time.monotonic() + DEADLINE
        while True:
            self.drop_caches()
            counters = {"backing_ids": 0, **self.statistics()}
            left = {name: counters[name] for name, count in IDLE.items() if counters[name] != count}
            # Beside its tables a daemon keeps one for each further filesystem it has met.
            surplus = len(os.listdir(f"/proc/{self.pid}/fd")) - self.descriptors_when_ready
            if surplus > 4:
                left["surplus of descriptors"] = surplus
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.05)


def _is_warning(line: str) -> bool:
    return line.startswith(("WARNING", "ERROR", "CRITICAL", "Traceback", "Exception"))


def is_mounted(path: Path) -> bool:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(path) for line in mounts)


class MountFactory(Protocol):
    """Start a daemon: ``mount(cache="never", scope=path, user=65534, ro=True, ...)``.

    Keyword options are those of ``volfs mount -o``: a value of True is the bare option. Unless
    they name a level (``no_tap=True``), the one of ``--level`` is asked for. That level, as far
    as this machine and user reach, has to be in effect; ``level`` says another, for a test that
    takes something away.

    ``prepare`` is called in the process before it is the daemon, and has to be one that pickles.
    The daemon is forked from an interpreter that has imported everything; with ``execute`` the
    program itself is executed.
    """

    def __call__(
        self,
        *,
        scope: Path | None = None,
        user: int = 0,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
        execute: bool = False,
        level: levels.Level | None = None,
        **options: str | bool,
    ) -> Mounted: ...


def few_descriptors(limit: int) -> Callable[[], None]:
    """A ``prepare`` after which the daemon can have no more descriptors than this."""
    return partial(_limit_descriptors, limit)


def _limit_descriptors(limit: int) -> None:
    if os.geteuid() == 0:  # who could raise the limit again
        syscalls.prctl(PR_CAPBSET_DROP, syscalls.CAP_SYS_RESOURCE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


_numbers = itertools.count()


@functools.cache
def workspaces() -> Path:
    """Where this process has its workspaces."""
    path = Path(tempfile.mkdtemp(prefix="volfs-test-", dir="/tmp"))
    path.chmod(0o755)
    scatter(path)
    return path


@contextmanager
def open_workspace() -> Iterator[Path]:
    """A directory on the disk that every user can reach, removed afterwards."""
    path = workspaces() / str(next(_numbers))
    path.mkdir(mode=0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def scattered(tmp_path_factory: pytest.TempPathFactory) -> None:
    """So are the temporary directories of pytest."""
    scatter(tmp_path_factory.getbasetemp())


@pytest.fixture
def workspace() -> Iterator[Path]:
    """A directory on the disk that every user can reach, removed afterwards."""
    with open_workspace() as path:
        yield path


@pytest.fixture(scope="module")
def filesystems() -> Iterator[Callable[[str], Path]]:
    """A directory of a filesystem of that kind: made once."""
    with ExitStack() as stack:
        workspace = stack.enter_context(open_workspace())
        found: dict[str, Path] = {"disk": workspace}

        def get(kind: str) -> Path:
            if kind not in found:
                make = {"xfs": xfs, "btrfs": btrfs}[kind]
                found[kind] = stack.enter_context(make(workspace / kind))
            return found[kind]

        yield get


@pytest.fixture
def mount(request: pytest.FixtureRequest, workspace: Path) -> Iterator[MountFactory]:
    """A factory of mounts; every daemon it started is stopped and checked at the end."""
    allow_warnings = request.node.get_closest_marker("allow_warnings") is not None
    with mounting(workspace, allow_warnings=allow_warnings) as start:
        yield start


@contextmanager
def mounting(workspace: Path, *, allow_warnings: bool = False) -> Iterator[MountFactory]:
    """The factory that the ``mount`` fixture gives, for fixtures that live longer than a test."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse on this machine")
    started: list[Mounted] = []
    sharing: list[None] = []
    stack = ExitStack()

    def start(
        *,
        scope: Path | None = None,
        user: int = 0,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
        execute: bool = False,
        level: levels.Level | None = None,
        **options: str | bool,
    ) -> Mounted:
        number = len(started)
        mnt = workspace / f"mnt{number}"
        mnt.mkdir()
        if scope is None:
            scope = workspace / f"scope{number}"
            scope.mkdir()
        if user:
            os.chown(mnt, user, user)
            os.chown(scope, user, user)
        with_level = levels.with_level(options)
        chosen = [
            name.replace("_", "-") if value is True else f"{name.replace('_', '-')}={value}"
            for name, value in with_level.items()
            if value is not False
        ]
        if user and not sharing:
            sharing.append(stack.enter_context(shared(workspace)))
        log_path = workspace / f"log{number}"
        manager = stack.enter_context(ServiceManager(workspace / f"notify{number}"))
        with log_path.open("wb") as log:
            process = interpreter.start(
                *("mount", "-f", scope, mnt),
                *(["-o", ",".join(chosen)] if chosen else []),
                stdout=log.fileno(),
                stderr=log.fileno(),
                environment={**manager.environment, **(environment or {})},
                user=User(user, workspace) if user else None,
                prepare=prepare,
                execute=execute,
            )
        expected = level or levels.expected(with_level, user)
        mounted = Mounted(scope, mnt, log_path, process, user, expected, allow_warnings)
        started.append(mounted)
        assert manager.hears_ready(process), f"volfs mount failed:\n{mounted.log}"
        mounted.descriptors_when_ready = len(os.listdir(f"/proc/{process.pid}/fd"))
        mounted.assert_level()
        return mounted

    try:
        yield start
    finally:
        failures = []
        for mounted in reversed(started):
            try:
                mounted.stop()
            except AssertionError as error:
                failures.append(str(error))
        stack.close()
    assert not failures, "\n".join(failures)


@pytest.fixture
def tree(mount: MountFactory) -> Mounted:
    """A mount with the default options."""
    return mount()


@pytest.fixture
def volume(tree: Mounted) -> Path:
    """A volume in a mount with the default options."""
    path = tree.mnt / "vol"
    path.mkdir()
    return path
