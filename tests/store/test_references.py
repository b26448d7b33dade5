"""References are kept in the scope, for every process on it, and are there after a restart."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis.stateful import rule

from tests.children import NOBODY, Child, in_namespace, needs_root, run_as
from tests.store import test_random
from tests.store.referring import (
    DEADLINE,
    OpenStore,
    Seen,
    files,
    open_at,
    refused,
)
from volfs.errors import VolumeInUseError, VolumeNotFoundError
from volfs.holder import Holder
from volfs.linux import syscalls
from volfs.linux.deletion import never
from volfs.local import LocalDriver
from volfs.store import References, VolumeStore
from volfs.store.table import ID_MAX

pytestmark = pytest.mark.any_level

MS_REMOUNT = 32
DOCKER = "0123456789abcdef" * 4


@pytest.fixture
def store(open_store: OpenStore) -> VolumeStore:
    return open_store()


class TestKept:
    def test_after_a_restart(self, open_store: OpenStore) -> None:
        first = open_store()
        first.create("vol")
        first.acquire("vol", DOCKER)
        again = open_store()
        assert again.references("vol") == {DOCKER}
        assert again.holders("vol") == [Holder("reference", DOCKER)]
        assert DOCKER in refused(again)
        again.create("other")
        changes: list[Callable[[], object]] = [
            lambda: again.rename("vol", "new"),
            lambda: again.exchange("vol", "other"),
            lambda: again.exchange("other", "vol"),
        ]
        for change in changes:
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
        (file,) = files(scope)
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (file, *file.parents[:2])]
        assert modes == [0o600, 0o700, 0o700]

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
TestKeptScope.settings = test_random.TestScope.settings
