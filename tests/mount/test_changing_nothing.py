"""A change of owner that changes nothing: the kernel asks the daemon before it has checked it.

chown(path, -1, -1) takes set-user-ID and set-group-ID bits away, which is for the owner to do.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.children import MEMBERS, OTHER, USER, run_as
from tests.conftest import Mounted, mounting, open_workspace
from tests.mount.capabilities import CAPABILITY
from tests.mount.comparing import Pair, outcome, owned

MODES = (0o4755, 0o2755, 0o6755, 0o2745, 0o4644, 0o6777, 0o755)


@pytest.fixture(scope="module")
def shared() -> Iterator[Mounted]:
    with open_workspace() as workspace, mounting(workspace) as mount:
        yield mount(suid=True, cache="always")


def chown_nothing(path: Path) -> None:
    os.chown(path, -1, -1)


def fchown_nothing(path: Path) -> None:
    with path.open("rb") as file:
        os.fchown(file.fileno(), -1, -1)


def lchown_nothing(path: Path) -> None:
    os.chown(path, -1, -1, follow_symlinks=False)


CALLS = {call.__name__: call for call in (chown_nothing, fchown_nothing, lchown_nothing)}


@pytest.mark.no_data
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("uid", "groups"),
    [(0, []), (USER, []), (OTHER, []), (OTHER, [MEMBERS])],
    ids=["root", "owner", "stranger", "member"],
)
def test_only_the_owner_takes_privileged_bits_away(
    shared: Mounted, pair: Pair, call: str, uid: int, groups: list[int]
) -> None:
    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for owner, group, mode in itertools.product((0, USER), (0, MEMBERS), MODES):
            path = top / f"{owner} {group} {mode:o}"
            path.write_bytes(b"program")
            os.chown(path, owner, group)
            path.chmod(mode)
            before = os.stat(path).st_ctime_ns
            told.append(run_as(partial(outcome, CALLS[call], path), uid, groups=groups))
            behind = pair.behind(path)
            told += [path.name, owned(path), owned(behind), os.stat(behind).st_ctime_ns > before]
        return told

    told = pair.same(operation)
    if uid == OTHER:
        assert "EPERM" in told


def test_what_a_stranger_may_not_change_stays_with_file_capabilities(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for mode in (0o755, 0o4755):
            path = top / f"{mode:o}"
            path.write_bytes(b"program")
            path.chmod(mode)
            os.setxattr(path, "security.capability", CAPABILITY)
            told.append(run_as(partial(outcome, chown_nothing, path), OTHER))
            told += [owned(path), outcome(os.getxattr, path, "security.capability")]
        return told

    pair.same(operation)


def test_directories_and_symlinks_too(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        (top / "directory").mkdir()
        (top / "directory").chmod(0o6755)
        (top / "link").symlink_to("directory")
        told: list[object] = []
        for name in ("directory", "link"):
            told.append(run_as(partial(outcome, lchown_nothing, top / name), OTHER))
            told.append(owned(top / name))
        return told

    pair.same(operation)


@pytest.mark.parametrize("uid", [USER, OTHER], ids=["owner", "stranger"])
def test_whoever_may_write_takes_the_bits_away_by_writing(pair: Pair, uid: int) -> None:
    """The kernel tells of a first write with the same request that changes nothing."""

    def operation(top: Path) -> list[object]:
        path = top / "program"
        path.write_bytes(b"program")
        os.chown(path, USER, USER)
        path.chmod(0o666)

        def work() -> object:
            with path.open("r+b", buffering=0) as file:
                return outcome(file.write, b"other")

        path.chmod(0o6777)
        return [run_as(work, uid), owned(path), path.read_bytes()]

    told = pair.same(operation)
    assert told[:2] == [5, (oct(stat.S_IFREG | 0o777), USER, USER)]


def overwrite(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(b"other")


WRITES = {
    "truncate": lambda path: os.truncate(path, 3),
    "open": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "write": overwrite,
}


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("uid", [USER, OTHER], ids=["owner", "stranger"])
def test_whoever_may_write_takes_file_capabilities_away_too(pair: Pair, uid: int, how: str) -> None:
    """Before it truncates, the kernel has them removed as it does before it changes nothing."""

    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for mode in (0o777, 0o4777, 0o2777, 0o6777):
            path = top / f"{mode:o}"
            path.write_bytes(b"program")
            os.chown(path, USER, USER)
            path.chmod(mode)
            os.setxattr(path, "security.capability", CAPABILITY)
            told.append(run_as(partial(outcome, WRITES[how], path), uid))
            behind = pair.data / path.name if top == pair.mounted else path
            for seen in (path, behind):
                told += [owned(seen), outcome(os.getxattr, seen, "security.capability")]
            told.append(path.read_bytes())
        return told

    assert "EPERM" not in pair.same(operation)


def test_a_stranger_takes_nothing_while_somebody_else_writes(shared: Mounted, pair: Pair) -> None:
    """A known difference: it is then told that all is well, and yet nothing is changed."""
    path = pair.mounted / "program"
    path.write_bytes(b"program")
    path.chmod(0o6755)
    os.setxattr(path, "security.capability", CAPABILITY)
    with path.open("r+b"):
        run_as(partial(outcome, chown_nothing, path), OTHER)
        assert os.getxattr(path, "security.capability") == CAPABILITY
        assert owned(path)[0] == oct(stat.S_IFREG | 0o6755)
        assert owned(pair.data / "program")[0] == oct(stat.S_IFREG | 0o6755)
