"""References whose holder is gone are dropped, and no others."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests import interpreter
from tests.children import USER, Child, in_namespace, needs_root, run_as
from tests.conftest import MountFactory, is_mounted, wait_for
from tests.store.referring import (
    OTHER_HOST,
    OpenStore,
    Seen,
    files,
    needs_first_namespaces,
    open_at,
    refused,
)
from volfs.errors import VolumeInUseError
from volfs.holder import Holder
from volfs.linux import syscalls
from volfs.linux.deletion import never
from volfs.store import Scan, VolumeStore
from volfs.store.table import Origin
from volfs.volume import Volume

pytestmark = pytest.mark.any_level

MS_BIND = 4096
DOCKER = "0123456789abcdef" * 4


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
        done = interpreter.run("rm", "--scope", tree.scope, "vol")
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
            out = log.fileno()
            daemon = interpreter.start("mount", "-f", scope, mnt, stdout=out, stderr=out)
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
        code = "from volfs.store.usage import Scan; print(Scan('/').sees_all())"
        answer = subprocess.check_output(["unshare", *elsewhere, sys.executable, "-c", code])
        assert answer == b"False\n"

    def test_nobody_does_where_proc_hides_processes(self) -> None:
        def attempt() -> bool:
            syscalls.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2")
            return Scan("/").sees_all()

        assert not in_namespace(attempt)
