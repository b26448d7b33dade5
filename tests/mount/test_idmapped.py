"""Idmapped bind mounts of volumes, as containers with a user namespace of their own have them.

Needs Linux 6.12 and the tap. The daemon is told who makes a file, and of nobody else who asks.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.acls import ACCESS, acl
from tests.children import run_as
from tests.conftest import MountFactory
from tests.idmapping import idmapped
from tests.mount.changing import CHANGES, change
from tests.mount.comparing import Pair, outcome, owned
from tests.mount.test_reading_and_writing import content
from volfs.linux import syscalls

FIRST = 100_000
OWNER = 1000
"""Who has files on the disk, and is FIRST + OWNER in the container."""

KERNEL = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])

pytestmark = [
    pytest.mark.needs_tap,
    pytest.mark.skipif(KERNEL < (6, 12), reason="FUSE can be idmapped since Linux 6.12"),
]


@pytest.fixture
def views(pair: Pair) -> Iterator[dict[Path, Path]]:
    """What a container sees, by the directory it is of."""
    pair.chmod(0o777)
    beside = pair.native.with_name(pair.native.name + "-seen")
    with (
        idmapped(pair.native, beside, FIRST) as native,
        idmapped(pair.mounted, beside.with_name(beside.name + "-too"), FIRST) as mounted,
    ):
        yield {pair.native: native, pair.mounted: mounted}


def inside(call: Callable[[], object], uid: int = OWNER) -> object:
    """Run ``call`` as user ``uid`` of the container."""
    return run_as(call, FIRST + uid)


def make_everything(top: Path) -> list[object]:
    told: list[object] = [outcome((top / "f").write_bytes, b"content")]
    told.append(outcome((top / "d").mkdir))
    told.append(outcome((top / "s").symlink_to, "f"))
    told.append(outcome(os.mkfifo, top / "p"))
    told.append(outcome(os.link, top / "f", top / "l"))
    fd = os.open(top, os.O_TMPFILE | os.O_RDWR)
    told.append(os.fstat(fd).st_uid)
    os.close(fd)
    directory = os.open(top, os.O_PATH)
    whiteout = syscalls.RENAME_WHITEOUT
    told.append(outcome(syscalls.renameat2, directory, b"p", directory, b"moved", whiteout))
    os.close(directory)
    return told


@pytest.mark.parametrize("uid", [0, OWNER], ids=["container's root", "user"])
def test_what_is_made_has_the_mapped_owner(pair: Pair, views: dict[Path, Path], uid: int) -> None:
    def operation(top: Path) -> list[list[Any]]:
        told = [run_as(partial(make_everything, views[top]), FIRST + uid)]
        for place in (top, pair.behind(top), views[top]):
            told.append([(path.name, *owned(path)) for path in sorted(place.iterdir())])
        return told

    told = pair.same(operation)
    assert not isinstance(told, str)
    _, on_disk, behind, seen = told
    assert {entry[2] for entry in on_disk} == {entry[2] for entry in behind} == {uid}
    assert {entry[2] for entry in seen} == {FIRST + uid}


def test_permission_is_that_of_the_mapped_owner(pair: Pair, views: dict[Path, Path]) -> None:
    def operation(top: Path) -> list[object]:
        for name, uid in (("own", OWNER), ("foreign", OWNER + 1), ("unmapped", FIRST + OWNER)):
            (top / name).write_bytes(b"content")
            os.chown(top / name, uid, uid)
            (top / name).chmod(0o600)

        def work() -> list[object]:
            told: list[object] = []
            for name in ("own", "foreign", "unmapped"):
                path = views[top] / name
                told += [
                    owned(path),
                    outcome(path.read_bytes),
                    outcome(path.chmod, 0o640),
                    outcome(os.chown, path, FIRST + OWNER, FIRST + OWNER),
                    outcome(os.setxattr, path, "user.x", b"value"),
                    outcome(os.truncate, path, 3),
                ]
            return told

        return [inside(work), *(owned(path) for path in sorted(top.iterdir()))]

    pair.same(operation)


@pytest.mark.parametrize("how", CHANGES)
def test_writing_clears_what_it_has_to(pair: Pair, views: dict[Path, Path], how: str) -> None:
    def operation(top: Path) -> list[object]:
        source = top / "source"
        source.write_bytes(content(9000))
        told: list[object] = []
        for mode in (0o4777, 0o6777):
            path = top / f"{mode:o}"
            path.write_bytes(content(5000, 2))
            os.chown(path, OWNER, OWNER)
            path.chmod(mode)
            place = views[top]
            call = partial(change, place / path.name, place / "source", CHANGES[how])
            told += [inside(partial(outcome, call)), owned(path)]
        return told

    pair.same(operation)


def test_without_an_idmapped_mount_requests_are_the_callers_too(pair: Pair) -> None:
    """The senders of requests that make nothing are not told on any mount any more."""
    path = pair.mounted / "f"
    path.write_bytes(b"content")
    os.chown(path, OWNER, OWNER)
    path.chmod(0o2755)
    os.setxattr(path, "trusted.x", b"value")

    def as_owner() -> list[object]:
        os.setxattr(path, ACCESS, acl(7, 5, 5, users={7: 5}, mask=5))
        with path.open("r+b") as file:
            syscalls.fallocate(file.fileno(), 0, 0, 10_000)
        return [os.listxattr(path), oct(path.stat().st_mode)]

    assert run_as(as_owner, OWNER) == [[ACCESS], oct(stat.S_IFREG | 0o755)]
    path.chmod(0o6755)
    with pytest.raises(PermissionError):
        run_as(partial(os.chown, path, -1, -1), OWNER + 1)
    run_as(partial(os.chown, path, -1, -1), OWNER)
    assert owned(path)[0] == oct(stat.S_IFREG | 0o755)


def test_who_removed_a_volume_is_noted(mount: MountFactory) -> None:
    tree = mount(root_mode="1777")
    run_as((tree.mnt / "v").mkdir, OWNER)
    run_as((tree.mnt / "v").rmdir, OWNER)
    notes = [path.read_text() for path in tree.scope.glob("trash/*/*.json")]
    assert any(f"uid {OWNER}" in note for note in notes), notes


def test_at_the_plain_level_there_are_none(mount: MountFactory, workspace: Path) -> None:
    tree = mount(no_tap=True)
    (tree.mnt / "v").mkdir()
    with pytest.raises(OSError) as caught, idmapped(tree.mnt / "v", workspace / "seen", FIRST):
        pass
    assert caught.value.errno == errno.EINVAL
