"""References: kept in the scope, decided between processes, dropped when their holder is gone."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import rule

from tests.children import NOBODY, USER, Child, all_at_once, in_namespace, needs_root, run_as
from tests.conftest import MountFactory, is_mounted, open_descriptors, wait_for
from tests.model import test_random
from volfs import syscalls
from volfs.errors import VolumeInUseError, VolumeNotFoundError
from volfs.local import LocalDriver
from volfs.reference_table import ID_MAX, Origin
from volfs.references import Look, References
from volfs.store import VolumeStore
from volfs.trash import never
from volfs.usage import Holder, Scan
from volfs.volume import Volume

pytestmark = pytest.mark.any_level

MS_REMOUNT = 32
MS_BIND = 4096
DEADLINE = 20.0
DOCKER = "0123456789abcdef" * 4
OTHER_HOST = Origin("0" * 32, "some boot")
needs_first_namespaces = pytest.mark.skipif(
    os.readlink("/proc/self/ns/pid") != "pid:[4026531836]"
    or os.readlink("/proc/self/ns/user") != "user:[4026531837]",
    reason="needs the machine's first pid and user namespace, to see all mounts",
)


@dataclass
class Seen:
    """A look at who uses volumes: all of them have the same holders."""

    mounts: list[Holder] = field(default_factory=list)
    opened: list[Holder] = field(default_factory=list)
    everything: bool = True
    looks: int = 0

    def __call__(self, scope: str) -> Look:
        self.looks += 1
        return self

    def sees_all(self) -> bool:
        return self.everything

    def mount_holders(self, volume: Volume) -> list[Holder]:
        return self.mounts

    def open_holders(self, volume: Volume) -> list[Holder]:
        return self.opened


class OpenStore(Protocol):
    def __call__(
        self,
        *,
        grace: float = 60.0,
        origin: Origin | None = None,
        look: Callable[[str], Look] | None = None,
    ) -> VolumeStore: ...


@pytest.fixture
def open_store(scope: Path) -> Iterator[OpenStore]:
    """Open the scope as another process would. At the end no descriptor may be left."""
    before = open_descriptors()
    opened: list[VolumeStore] = []

    def open_it(
        *,
        grace: float = 60.0,
        origin: Origin | None = None,
        look: Callable[[str], Look] | None = None,
    ) -> VolumeStore:
        driver = LocalDriver(scope, keep_free=0)
        references = References(driver.scope, grace=grace, origin=origin, look=look)
        opened.append(VolumeStore([driver], references=references))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()
    assert open_descriptors() == before


@pytest.fixture
def store(open_store: OpenStore) -> VolumeStore:
    return open_store()


def open_at(scope: Path) -> VolumeStore:
    driver = LocalDriver(scope, keep_free=0)
    return VolumeStore([driver], references=References(driver.scope))


def files(scope: Path, name: str = "vol") -> list[Path]:
    return sorted((scope / "references" / name).iterdir())


def times_open(path: Path) -> int:
    """How many descriptors of a file this process has."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{fd}") == str(path)
    return found


def refused(store: VolumeStore, name: str = "vol") -> str:
    """Return why the volume cannot be removed, and nothing else happens to it."""
    with pytest.raises(VolumeInUseError) as caught:
        store.remove(name)
    assert name in store.names()
    return str(caught.value)


class TestKept:
    def test_after_a_restart(self, open_store: OpenStore) -> None:
        first = open_store()
        first.create("vol")
        first.acquire("vol", DOCKER)
        again = open_store()
        assert again.references("vol") == {DOCKER}
        assert again.holders("vol") == [Holder("reference", DOCKER)]
        assert DOCKER in refused(again)
        for change in (
            lambda: again.rename("vol", "new"),
            lambda: again.exchange("vol", "other"),
            lambda: again.exchange("other", "vol"),
        ):
            with suppress(VolumeNotFoundError):
                again.create("other")
                with pytest.raises(VolumeInUseError, match=DOCKER):
                    change()

    def test_and_released_by_whoever_comes_next(self, open_store: OpenStore) -> None:
        first, second = open_store(), open_store()
        first.create("vol")
        first.acquire("vol", "a")
        second.acquire("vol", "b")
        assert first.references("vol") == {"a", "b"}
        second.release("vol", "a")
        assert first.references("vol") == {"b"}
        first.release("vol", "b")
        second.remove("vol")

    def test_by_another_process(self, open_store: OpenStore, scope: Path) -> None:
        store = open_store()
        store.create("vol")
        with Child(lambda: open_at(scope).acquire("vol", "theirs").name) as child:
            assert child.result() == "vol"
        assert "reference theirs" in refused(store)

    def test_once_is_as_good_as_twice(self, store: VolumeStore, scope: Path) -> None:
        store.create("vol")
        for _ in range(3):
            store.acquire("vol", "r")
        assert len(files(scope)) == 1
        store.release("vol", "r")
        store.release("vol", "r")
        assert store.references("vol") == frozenset()
        store.release("nothing", "r")
        store.release("../volumes", "r")

    def test_for_their_owner_only_and_made_when_needed(
        self, store: VolumeStore, scope: Path
    ) -> None:
        store.create("vol")
        store.release("vol", "r")
        assert store.references("vol") == frozenset()
        store.housekeep(never)
        assert not (scope / "references").exists()
        umask = os.umask(0)
        try:
            store.acquire("vol", "r")
        finally:
            os.umask(umask)
        modes = {
            path.relative_to(scope).parts[1:2] or ("",): stat.S_IMODE(path.stat().st_mode)
            for path in (scope / "references", scope / "references" / "vol")
        }
        assert set(modes.values()) == {0o700}
        (file,) = files(scope)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_of_something_that_is_no_volume_are_none(self, store: VolumeStore, scope: Path) -> None:
        for name in ("vol", "", "../volumes", ".hidden", "a/b", "x" * 300):
            with pytest.raises(VolumeNotFoundError):
                store.acquire(name, "r")
            assert store.references(name) == frozenset()
        assert not (scope / "references").exists()

    @pytest.mark.parametrize(
        "id",
        ["", " ", "../../x", "a/b\0c", "two\nlines", "café ☃", "\udcff", '{"id"', "x" * ID_MAX],
    )
    def test_whatever_the_id_is(self, open_store: OpenStore, id: str) -> None:
        store = open_store()
        store.create("vol")
        store.acquire("vol", id)
        assert open_store().references("vol") == {id}
        assert str(Holder("reference", id)) in refused(store)
        store.release("vol", id)
        store.remove("vol")

    def test_unless_it_is_too_long(self, store: VolumeStore) -> None:
        store.create("vol")
        with pytest.raises(OSError, match=str(ID_MAX)) as caught:
            store.acquire("vol", "é" * (ID_MAX // 2 + 1))
        assert caught.value.errno == errno.EINVAL
        store.release("vol", "x" * (ID_MAX + 1))
        store.remove("vol")

    def test_not_for_the_next_volume_of_that_name(self, store: VolumeStore, scope: Path) -> None:
        store.create("vol")
        store.acquire("vol", "r")
        (scope / "volumes" / "vol").rename(scope / "gone")
        store.create("vol")
        assert store.references("vol") == frozenset()
        store.acquire("vol", "s")
        store.create("vol")
        assert store.references("vol") == {"s"}

    def test_not_for_a_volume_that_gets_that_name(self, store: VolumeStore, scope: Path) -> None:
        store.create("vol")
        store.acquire("vol", "r")
        (scope / "volumes" / "vol").rename(scope / "volumes" / "moved")
        store.rename("moved", "vol")
        assert store.references("vol") == frozenset()

    def test_leave_nothing_behind(self, store: VolumeStore, scope: Path) -> None:
        for name in ("vol", "old"):
            store.create(name)
            store.acquire(name, "r")
            store.release(name, "r")
        (scope / "references" / "vol" / ".new-0123").touch()  # as a crash leaves it
        store.remove("vol")
        store.rename("old", "new")
        assert [entry.name for entry in (scope / "references").iterdir()] == [".lock"]

    def test_deleted_by_hand_are_released(self, store: VolumeStore, scope: Path) -> None:
        store.create("vol")
        store.acquire("vol", "r")
        subprocess.run(["rm", "-r", scope / "references"], check=True)
        assert store.references("vol") == frozenset()
        store.acquire("vol", "s")
        assert store.references("vol") == {"s"}

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b'"text"',
            b"\xff",
            b"[" * 10000,
            b"{}",
            b'{"id": "other", "since": "2026-01-01T00:00:00+00:00", "awake": 1, "host": "h",'
            b' "boot": "b"}',
            b"x" * 100_000,
        ],
    )
    def test_hold_though_they_are_damaged(
        self,
        open_store: OpenStore,
        scope: Path,
        caplog: pytest.LogCaptureFixture,
        content: bytes,
    ) -> None:
        store = open_store(grace=0, look=Seen())
        store.create("vol")
        store.acquire("vol", "r")
        (file,) = files(scope)
        file.write_bytes(content)
        assert str(file) in refused(store)
        store.housekeep(never)
        assert str(file) in refused(store)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        store.release("vol", "r")
        store.remove("vol")

    @pytest.mark.parametrize("field", ["id", "since", "awake", "host", "boot"])
    def test_hold_without_a_part(self, open_store: OpenStore, scope: Path, field: str) -> None:
        store = open_store(grace=0, look=Seen())
        store.create("vol")
        store.acquire("vol", "r")
        (file,) = files(scope)
        record = json.loads(file.read_text())
        for damaged in ({**record, field: []}, {k: v for k, v in record.items() if k != field}):
            file.write_text(json.dumps(damaged))
            assert str(file) in refused(store)
        store.acquire("vol", "r")
        assert store.references("vol") == {"r"}

    def test_are_no_links(self, store: VolumeStore, scope: Path, workspace: Path) -> None:
        store.create("vol")
        store.acquire("vol", "r")
        (file,) = files(scope)
        file.rename(workspace / "elsewhere")
        file.symlink_to(workspace / "elsewhere")
        assert str(file) in refused(store)
        store.release("vol", "r")
        assert (workspace / "elsewhere").exists()
        (scope / "references" / "vol").rmdir()
        (scope / "references" / "vol").symlink_to(workspace)
        with pytest.raises(OSError, match=r"vol"):
            store.remove("vol")
        assert store.names() == ["vol"]

    @needs_root
    def test_belong_to_the_scopes_owner_though_root_made_them(
        self, workspace: Path, scope: Path
    ) -> None:
        os.chown(workspace, NOBODY, NOBODY)

        def prepare() -> None:
            store = open_at(scope)
            store.create("vol")
            store.close()

        def attempt() -> frozenset[str]:
            store = open_at(scope)
            held = store.references("vol")
            for id in held:
                store.release("vol", id)
            store.acquire("vol", "theirs")
            store.release("vol", "theirs")
            store.remove("vol")
            return held

        run_as(prepare, NOBODY)
        store = open_at(scope)
        store.acquire("vol", "roots")
        store.close()
        assert run_as(attempt, NOBODY) == {"roots"}

    @needs_root
    def test_of_a_read_only_scope_can_be_read(self, workspace: Path) -> None:
        def attempt() -> tuple[frozenset[str], list[int]]:
            scope = workspace / "disk"
            scope.mkdir()
            syscalls.mount(b"tmpfs", os.fsencode(scope), b"tmpfs", 0, b"size=8m")
            store = open_at(scope)
            store.create("vol")
            store.create("free")
            store.acquire("vol", "r")
            store.close()
            syscalls.mount(b"", os.fsencode(scope), b"", MS_REMOUNT | syscalls.MS_RDONLY, b"")
            driver = LocalDriver(scope)
            references = References(driver.scope, grace=0, look=Seen())
            store = VolumeStore([driver], references=references)
            store.housekeep(never)
            # Whoever wants to read its volumes gets them; nothing can be removed anyway.
            assert store.acquire("vol", "s").name == "vol"
            assert store.acquire("free", "s").name == "free"
            store.release("free", "s")
            refusals = []
            for name in ("vol", "free"):
                try:
                    store.remove(name)
                except VolumeInUseError as error:
                    refusals.append(error.errno)
                except OSError as error:
                    refusals.append(error.errno or 0)
            return store.references("vol"), refusals

        assert in_namespace(attempt) == (frozenset({"r"}), [errno.EBUSY, errno.EROFS])

    @needs_root
    def test_a_read_only_scope_without_any(self, workspace: Path) -> None:
        def attempt() -> tuple[frozenset[str], list[Holder], str]:
            scope = workspace / "disk"
            scope.mkdir()
            syscalls.mount(b"tmpfs", os.fsencode(scope), b"tmpfs", 0, b"size=8m")
            LocalDriver(scope).create("vol")
            syscalls.mount(b"", os.fsencode(scope), b"", MS_REMOUNT | syscalls.MS_RDONLY, b"")
            store = open_at(scope)
            return store.references("vol"), store.holders("vol"), store.acquire("vol", "r").name

        assert in_namespace(attempt) == (frozenset(), [], "vol")

    @needs_root
    def test_are_not_in_the_way_of_making_room(self, workspace: Path) -> None:
        def attempt() -> tuple[list[str], int | None]:
            scope = workspace / "disk"
            scope.mkdir()
            syscalls.mount(b"tmpfs", os.fsencode(scope), b"tmpfs", 0, b"size=8m,nr_inodes=100")
            store = open_at(scope)
            driver = store.drivers.get("local")
            driver.remove(driver.create("old"))
            volume = store.create("vol")
            store.create("other")
            with suppress(OSError):
                for number in range(100):
                    Path(volume.path, str(number)).touch()
            store.remove("vol")
            try:
                with suppress(FileExistsError):
                    for number in range(100):
                        Path(scope, str(number)).touch()
            except OSError as error:
                assert error.errno == errno.ENOSPC
            try:
                store.acquire("other", "r")
            except OSError as error:
                return store.names(), error.errno
            return store.names(), None

        assert in_namespace(attempt) == (["other"], errno.ENOSPC)


def acquire(store: VolumeStore, turn: int) -> int:
    """Acquire the volume of this turn, and return which one that is."""
    return os.stat(store.acquire(f"vol{turn}", "r").path).st_ino


class TestRaces:
    """With a scope in memory, where processes come closer to each other."""

    @pytest.fixture
    def scope(self, quick_scope: Path) -> Path:
        return quick_scope

    ROUNDS = 300

    def race(
        self, scope: Path, *contenders: Callable[[VolumeStore, int], int]
    ) -> list[tuple[int | None, ...]]:
        """Let two processes meet ROUNDS times; return what each answered in each round, None
        where it was refused."""
        ends = socket.socketpair()

        def running(
            number: int, contend: Callable[[VolumeStore, int], int]
        ) -> Callable[[], list[int | None]]:
            def run() -> list[int | None]:
                store = open_at(scope)
                mine = ends[number]
                mine.settimeout(DEADLINE)
                chance = random.Random(number)

                def dawdle() -> None:
                    end = time.perf_counter() + chance.random() * 0.0005
                    while time.perf_counter() < end:
                        pass

                def look(volume: Volume) -> list[Holder]:
                    dawdle()
                    return []

                store.add_holder_source(look)
                answers: list[int | None] = []
                for turn in range(self.ROUNDS):
                    mine.send(b"x")
                    assert mine.recv(1)
                    dawdle()
                    try:
                        answers.append(contend(store, turn))
                    except (VolumeInUseError, VolumeNotFoundError):
                        answers.append(None)
                return answers

            return run

        with ends[0], ends[1]:
            results = all_at_once([running(*item) for item in enumerate(contenders)])
        return list(zip(*results, strict=True))

    def test_of_a_removal_and_an_acquisition_one_succeeds(
        self, scope: Path, open_store: OpenStore
    ) -> None:
        store = open_store()
        for turn in range(self.ROUNDS):
            store.create(f"vol{turn}")

        def remove(store: VolumeStore, turn: int) -> int:
            store.remove(f"vol{turn}")
            return 1

        for turn, (removed, acquired) in enumerate(self.race(scope, remove, acquire)):
            assert (removed is None) != (acquired is None), turn
            assert (f"vol{turn}" in store.names()) == (removed is None)
            assert store.references(f"vol{turn}") == ({"r"} if acquired else frozenset())

    def test_of_a_renaming_and_an_acquisition_one_succeeds(
        self, scope: Path, open_store: OpenStore
    ) -> None:
        store = open_store()
        for turn in range(self.ROUNDS):
            store.create(f"vol{turn}")

        def rename(store: VolumeStore, turn: int) -> int:
            store.rename(f"vol{turn}", f"new{turn}")
            return 1

        for turn, (renamed, acquired) in enumerate(self.race(scope, rename, acquire)):
            assert (renamed is None) != (acquired is None), turn
            assert store.references(f"new{turn}") == frozenset()
            assert store.references(f"vol{turn}") == ({"r"} if acquired else frozenset())

    def test_what_was_acquired_is_not_exchanged(self, scope: Path, open_store: OpenStore) -> None:
        store = open_store()
        for turn in range(self.ROUNDS):
            store.create(f"vol{turn}")
            store.create(f"new{turn}")

        def exchange(store: VolumeStore, turn: int) -> int:
            store.exchange(f"vol{turn}", f"new{turn}")
            return 1

        for turn, (_, acquired) in enumerate(self.race(scope, exchange, acquire)):
            assert os.stat(store.get(f"vol{turn}").path).st_ino == acquired
            assert store.references(f"new{turn}") == frozenset()
            assert store.references(f"vol{turn}") == {"r"}

    def test_the_first_reference_of_a_scope_too(self, scope: Path) -> None:
        for number in range(20):
            LocalDriver(scope / str(number)).create("vol")

        def removing(number: int) -> Callable[[], bool]:
            def run() -> bool:
                try:
                    open_at(scope / str(number)).remove("vol")
                except VolumeInUseError:
                    return False
                return True

            return run

        def acquiring(number: int) -> Callable[[], bool]:
            def run() -> bool:
                try:
                    open_at(scope / str(number)).acquire("vol", "r")
                except VolumeNotFoundError:
                    return False
                return True

            return run

        for number in range(20):
            assert sorted(all_at_once([removing(number), acquiring(number)])) == [False, True]

    def test_whoever_dies_with_the_lock_keeps_nobody(
        self, scope: Path, open_store: OpenStore
    ) -> None:
        store = open_store()
        store.create("vol")
        reader, writer = os.pipe()

        def hold() -> None:
            with References(str(scope)).held("vol"):
                os.write(writer, b"x")
                signal.pause()

        with Child(hold) as child, ThreadPoolExecutor(1) as threads:
            os.read(reader, 1)
            waiting = threads.submit(store.acquire, "vol", "r")
            store.create("other")
            store.acquire("other", "r")
            assert not waiting.done()
            os.kill(child.pid, signal.SIGKILL)
            assert child.was_killed()
            assert waiting.result(DEADLINE).name == "vol"
        os.close(reader)
        os.close(writer)

    def test_a_lock_deleted_by_hand_is_none(self, scope: Path, open_store: OpenStore) -> None:
        store = open_store()
        store.create("vol")
        lock = scope / "references" / ".lock"
        references = References(str(scope))
        with ThreadPoolExecutor(1) as threads:
            with references.held("vol"):
                removal = threads.submit(store.remove, "vol")
                wait_for(lambda: times_open(lock) == 2, "the removal to want the lock")
                lock.unlink()
                another = references.held("vol")
                another.__enter__()
            try:
                wait_for(lambda: times_open(lock) == 2, "the removal to want the other lock")
                assert not removal.done()
            finally:
                another.__exit__(None, None, None)
            removal.result(DEADLINE)
        references.close()

    def test_without_locks_there_is_one_warning(
        self,
        open_store: OpenStore,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def no_locks(fd: int, command: int, argument: bytes) -> bytes:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "fcntl", no_locks)
        store = open_store()
        store.create("vol")
        store.acquire("vol", "r")
        refused(store)
        store.release("vol", "r")
        store.remove("vol")
        assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_many_at_once_take_no_time(store: VolumeStore) -> None:
    store.create("vol")
    ids = [f"{number:064x}" for number in range(200)]
    start = time.monotonic()
    with ThreadPoolExecutor(200) as threads:
        for done in [threads.submit(store.acquire, "vol", id) for id in ids]:
            done.result(DEADLINE)
        assert store.references("vol") == set(ids)
        for released in [threads.submit(store.release, "vol", id) for id in ids]:
            released.result(DEADLINE)
    assert time.monotonic() - start < 10
    assert store.references("vol") == frozenset()


class TestStale:
    def test_with_nothing_mounted_or_open(
        self, open_store: OpenStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        store = open_store(grace=0, look=Seen())
        store.create("vol")
        store.acquire("vol", "a")
        store.acquire("vol", "b")
        store.remove("vol")
        assert store.names() == []
        year = str(datetime.now(UTC).year)
        lines = [record.getMessage() for record in caplog.records]
        assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
        for id, line in zip("ab", lines, strict=True):
            assert f"reference {id} to volume 'vol'" in line
            assert f"since {year}-" in line

    def test_are_found_by_housekeeping(self, open_store: OpenStore) -> None:
        seen = Seen()
        store = open_store(grace=0, look=seen)
        for name in ("a", "b", "c"):
            store.create(name)
            store.acquire(name, "r")
        store.release("c", "r")
        store.housekeep(never)
        assert [store.references(name) for name in ("a", "b", "c")] == [frozenset()] * 3
        assert seen.looks == 1
        store.housekeep(never)
        assert seen.looks == 1, "a look at all processes with nothing to find out"

    def test_are_found_beside_what_cannot_be_read(
        self, open_store: OpenStore, scope: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = open_store(grace=0, look=Seen())
        for name in ("a", "b", "c"):
            store.create(name)
            store.acquire(name, "r")
        (scope / "references" / "b").rename(scope / "elsewhere")
        (scope / "references" / "b").symlink_to("../elsewhere")
        store.housekeep(never)
        store.housekeep(never)
        assert store.references("a") == store.references("c") == frozenset()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "'b'" in caplog.text

    def test_let_a_volume_be_renamed(self, open_store: OpenStore) -> None:
        store = open_store(grace=0, look=Seen())
        store.create("vol")
        store.create("other")
        store.acquire("vol", "r")
        store.rename("vol", "new")
        store.acquire("new", "r")
        store.exchange("other", "new")
        assert store.references("new") == store.references("other") == frozenset()

    def test_only_after_a_while(self, open_store: OpenStore) -> None:
        seen = Seen()
        store = open_store(look=seen)
        store.create("vol")
        store.acquire("vol", "r")
        store.housekeep(never)
        refused(store)
        assert seen.looks == 0

    def test_the_while_begins_anew_when_it_is_acquired_again(
        self, open_store: OpenStore, scope: Path
    ) -> None:
        store = open_store(look=Seen())
        store.create("vol")
        store.acquire("vol", "podman")
        (file,) = files(scope)
        old = file.read_text()
        record = json.loads(old)
        file.write_text(json.dumps(record | {"awake": record["awake"] - 3600}))
        store.acquire("vol", "podman")
        refused(store)
        file.write_text(json.dumps(record | {"awake": record["awake"] - 3600}))
        store.remove("vol")

    def test_never_by_the_clock_on_the_wall(self, open_store: OpenStore, scope: Path) -> None:
        store = open_store(look=Seen())
        store.create("vol")
        store.acquire("vol", "r")
        (file,) = files(scope)
        record = json.loads(file.read_text())
        for when in ("1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"):
            file.write_text(json.dumps(record | {"since": when}))
            store.housekeep(never)
            refused(store)

    @pytest.mark.parametrize("kind", ["mount", "open"])
    def test_not_while_anything_holds_the_volume(self, open_store: OpenStore, kind: str) -> None:
        holder = Holder(kind, "/data", 17, "sleep", DOCKER)  # type: ignore[arg-type]
        seen = Seen([holder] if kind == "mount" else [], [holder] if kind == "open" else [])
        store = open_store(grace=0, look=seen)
        store.create("vol")
        store.acquire("vol", "a")
        store.acquire("vol", "b")
        store.housekeep(never)
        assert store.references("vol") == {"a", "b"}
        refused(store)
        seen.mounts, seen.opened = [], []
        store.housekeep(never)
        assert store.references("vol") == frozenset()

    def test_are_named_with_the_mounts_and_their_containers(self, open_store: OpenStore) -> None:
        store = open_store()
        store.create("vol")
        store.acquire("vol", "podman")
        store.add_holder_source(lambda volume: [Holder("mount", "/data", 17, "sleep", DOCKER)])
        reason = refused(store)
        assert "reference podman; mounted at /data" in reason
        assert f"container {DOCKER[:12]}" in reason

    def test_not_when_not_all_can_be_seen(self, open_store: OpenStore) -> None:
        store = open_store(grace=0, look=Seen(everything=False))
        store.create("vol")
        store.acquire("vol", "r")
        store.housekeep(never)
        refused(store)

    def test_not_if_it_is_acquired_amid_the_look(self, open_store: OpenStore) -> None:
        other = open_store()

        class Slow(Seen):
            def mount_holders(self, volume: Volume) -> list[Holder]:
                other.acquire("vol", "again")
                return []

        store = open_store(grace=0, look=Slow())
        store.create("vol")
        store.acquire("vol", "again")
        store.acquire("vol", "gone")
        assert "reference gone" not in refused(store)
        assert store.references("vol") == {"again"}

    def test_after_a_boot(self, open_store: OpenStore, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        here = Origin.here()
        before = open_store(origin=Origin(here.host, "the boot before"))
        before.create("vol")
        before.acquire("vol", "old")
        seen = Seen([Holder("mount", "/data")], everything=False)
        now = open_store(look=seen)
        now.acquire("vol", "new")
        now.housekeep(never)
        assert now.references("vol") == {"new"}
        assert "reference old to volume 'vol'" in caplog.text
        now.release("vol", "new")
        before.acquire("vol", "old")
        now.remove("vol")
        assert seen.looks == 0

    def test_of_another_host_are_not_judged(self, open_store: OpenStore) -> None:
        there = open_store(origin=OTHER_HOST)
        there.create("vol")
        there.acquire("vol", "theirs")
        here = open_store(grace=0, look=Seen())
        here.housekeep(never)
        assert "reference theirs" in refused(here)
        there.release("vol", "theirs")
        here.remove("vol")

    def test_where_the_boot_is_not_known_hold(self, open_store: OpenStore) -> None:
        host = Origin.here().host
        store = open_store(grace=0, origin=Origin(host, ""), look=Seen())
        store.create("vol")
        store.acquire("vol", "unknown")
        open_store(grace=0, origin=Origin(host, "another"), look=Seen()).acquire("vol", "another")
        store.housekeep(never)
        assert store.references("vol") == {"unknown", "another"}

    def test_are_told_by_this_machine(self) -> None:
        here = Origin.here()
        assert here.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert here.host
        assert here == Origin.here()


@needs_root
@needs_first_namespaces
class TestRealMounts:
    @pytest.fixture
    def store(self, open_store: OpenStore, scope: Path) -> VolumeStore:
        """A store that judges at once, by what is really mounted."""
        store = open_store(grace=0)
        store.create("vol")
        store.acquire("vol", "r")
        return store

    def test_a_mount_in_another_namespace_holds_and_its_end_frees(
        self, store: VolumeStore, workspace: Path
    ) -> None:
        (target := workspace / "target").mkdir()
        data = os.fsencode(store.get("vol").path)
        told, ended = os.pipe(), os.pipe()

        def container() -> None:
            syscalls.mount(data, os.fsencode(target), b"", MS_BIND, b"")
            os.write(told[1], b"x")
            os.close(ended[1])
            os.read(ended[0], 1)

        with Child(container, mounts=True) as child:
            os.read(told[0], 1)
            os.kill(child.pid, signal.SIGSTOP)  # a paused container
            store.housekeep(never)
            assert "reference r" in refused(store)
            os.kill(child.pid, signal.SIGKILL)
            assert child.was_killed()
        for fd in (*told, *ended):
            os.close(fd)
        store.remove("vol")

    def test_neither_the_tree_nor_the_command_removes_what_has_a_reference(
        self, mount: MountFactory
    ) -> None:
        tree = mount()
        (tree.mnt / "vol").mkdir()
        store = open_at(tree.scope)
        store.acquire("vol", DOCKER)
        with pytest.raises(OSError, match="busy"):
            (tree.mnt / "vol").rmdir()
        with pytest.raises(OSError, match="busy"):
            (tree.mnt / "vol").rename(tree.mnt / "new")
        assert os.getxattr(tree.mnt / "vol", "volfs.users") == f"reference {DOCKER}".encode()
        done = subprocess.run(
            [sys.executable, "-m", "volfs", "rm", "--scope", str(tree.scope), "vol"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == VolumeInUseError.exit_code
        assert f"reference {DOCKER}" in done.stderr
        store.release("vol", DOCKER)
        store.close()
        (tree.mnt / "vol").rmdir()

    def test_the_mount_of_a_dead_tree_holds(
        self, store: VolumeStore, scope: Path, workspace: Path
    ) -> None:
        (mnt := workspace / "mnt").mkdir()
        (target := workspace / "target").mkdir()
        with (workspace / "log").open("wb") as log:
            daemon = subprocess.Popen(
                [sys.executable, "-m", "volfs", "mount", "-f", str(scope), str(mnt)], stderr=log
            )
        try:
            wait_for(lambda: is_mounted(mnt) or daemon.poll() is not None, "the mount")
            assert daemon.poll() is None, (workspace / "log").read_text()
            syscalls.mount(os.fsencode(mnt / "vol"), os.fsencode(target), b"", MS_BIND, b"")
            daemon.kill()
            daemon.wait()
            syscalls.umount2(os.fsencode(mnt), syscalls.MNT_DETACH)
            with pytest.raises(OSError, match="not connected"):
                os.listdir(target)
            store.housekeep(never)
            assert "reference r" in refused(store)
        finally:
            daemon.kill()
            daemon.wait()
            for point in (target, mnt):
                if is_mounted(point):
                    syscalls.umount2(os.fsencode(point), syscalls.MNT_DETACH)
        store.remove("vol")


@needs_root
@needs_first_namespaces
class TestSeesAll:
    def test_root_does(self, tmp_path: Path) -> None:
        assert Scan(str(tmp_path)).sees_all()

    def test_a_user_does_not_beside_somebody_elses_container(self, tmp_path: Path) -> None:
        with subprocess.Popen(
            ["unshare", "--pid", "--fork", "cat"], stdin=subprocess.PIPE
        ) as other:
            children = Path(f"/proc/{other.pid}/task/{other.pid}/children")
            wait_for(children.read_text, "the container")
            assert not run_as(lambda: Scan("/").sees_all(), USER)
            assert Scan("/").sees_all()
            assert other.stdin
            other.stdin.close()

    @pytest.mark.parametrize(
        "elsewhere", [["--pid", "--fork", "--mount-proc"], ["--user", "--map-root-user"]]
    )
    def test_nobody_does_from_another_namespace(self, elsewhere: list[str]) -> None:
        code = "from volfs.usage import Scan; print(Scan('/').sees_all())"
        answer = subprocess.check_output(["unshare", *elsewhere, sys.executable, "-c", code])
        assert answer == b"False\n"

    def test_nobody_does_where_proc_hides_processes(self) -> None:
        def attempt() -> bool:
            syscalls.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2")
            return Scan("/").sees_all()

        assert not in_namespace(attempt)


class KeptScope(test_random.Scope):
    """Random operations, with the references kept in the scope."""

    def open(self) -> None:
        self.driver = LocalDriver(self.directory, keep_free=0)
        self.store = VolumeStore([self.driver], references=References(str(self.directory)))

    @rule()
    def start_again(self) -> None:
        self.store.close()
        self.open()


TestKeptScope = KeptScope.TestCase
TestKeptScope.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
