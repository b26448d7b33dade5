"""A process killed at any instant leaves the old state or the new one, and nothing in the way.

Each operation runs in a child that is killed just before its k-th system call that changes
anything, for every k, on a scope made afresh. Then a fresh driver must see what was there
before or what was to be, and the operation done again must lead to the latter.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.children import Child
from tests.local.scopes import (
    SOMEBODY,
    age,
    contents,
    hidden_entries,
    make,
    removed_contents,
    write,
)
from volfs.copies.marks import wait_a_tick
from volfs.errors import VolumeExistsError, VolumeNotFoundError
from volfs.linux.deletion import never
from volfs.local import LocalDriver
from volfs.local import names as naming
from volfs.volume import NewVolume

CHANGING = ("mkdir", "rename", "open", "write", "fsync", "fchown", "fchmod", "unlink", "rmdir")


@pytest.fixture
def scope(quick_scope: Path) -> Path:
    return quick_scope


@dataclass(frozen=True)
class State:
    """All that can be seen of a scope."""

    volumes: dict[str, str]
    labels: dict[str, dict[str, str]]
    removed: list[tuple[str, str]]


def state(driver: LocalDriver) -> State:
    labels = {volume.name: dict(volume.labels) for volume in driver.list()}
    return State(contents(driver), labels, removed_contents(driver))


def prepare(scope: Path) -> None:
    """Two volumes, one removed volume, and a directory that is no volume."""
    driver = LocalDriver(scope)
    for name in ("one", "other", "gone"):
        write(driver.create(NewVolume(name, labels={"was": name})).path, name)
    Path(driver.get("gone").path, "a", "b").mkdir(parents=True)
    write(driver.get("gone").path, "deep", "a/b/file")
    driver.remove(driver.get("gone"))
    (scope / "volumes" / "leftover").mkdir()
    (scope / "volumes" / "leftover" / "note").write_text("kept")
    driver.close()


def create(driver: LocalDriver) -> None:
    make(driver, NewVolume("new", {"mode": "750"}, labels={"a": "b"}, owner=SOMEBODY))


def adopt(driver: LocalDriver) -> None:
    make(driver, NewVolume("leftover", labels={"a": "b"}))


def remove(driver: LocalDriver) -> None:
    driver.remove(driver.get("one"), by="me")


def rename(driver: LocalDriver) -> None:
    driver.rename(driver.get("one"), "renamed")


def rename_over_leftover(driver: LocalDriver) -> None:
    driver.rename(driver.get("one"), "leftover")


def exchange(driver: LocalDriver) -> None:
    driver.exchange(driver.get("one"), driver.get("other"))


def relabel(driver: LocalDriver) -> None:
    driver.set_labels(driver.get("one"), {"c": "d"})


def restore(driver: LocalDriver) -> None:
    driver.restore("gone", "restored")


def purge(driver: LocalDriver) -> None:
    driver.trash.purge()


def clone(driver: LocalDriver) -> None:
    wait_a_tick()  # what was changed so lately is copied again: the changes would differ in number
    driver.clone("one", NewVolume("copy", labels={"a": "b"}))


OPERATIONS = (
    create,
    clone,
    adopt,
    remove,
    rename,
    rename_over_leftover,
    exchange,
    relabel,
    restore,
    purge,
)


def killed_before(number: int, operation: Callable[[LocalDriver], None], scope: Path) -> bool:
    """Run an operation in a child; return whether it was killed, before its number-th change."""

    def run() -> None:
        driver = LocalDriver(scope)
        calls = itertools.count(1)

        def wrapped(call: Callable[..., object]) -> Callable[..., object]:
            def counting(*args: object, **kwargs: object) -> object:
                if next(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return counting

        for module, names in ((os, CHANGING), (naming, ("renameat2",))):
            for name in names:
                setattr(module, name, wrapped(getattr(module, name)))
        operation(driver)

    return Child(run).was_killed()


def kills(operation: Callable[[LocalDriver], None], scope: Path) -> Iterator[int]:
    """Kill the operation before each of its changes in turn, on a scope made afresh for each."""
    for number in itertools.count(1):
        shutil.rmtree(scope, ignore_errors=True)
        prepare(scope)
        if not killed_before(number, operation, scope):
            return
        yield number


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_anywhere_an_operation_is_done_or_not(
    operation: Callable[[LocalDriver], None], scope: Path
) -> None:
    prepare(scope)
    driver = LocalDriver(scope)
    before = state(driver)
    operation(driver)
    after = state(driver)
    driver.close()
    assert before != after

    seen = []
    for number in kills(operation, scope):
        driver = LocalDriver(scope)
        now = state(driver)
        assert now in (before, after), f"killed before change {number}"
        seen.append(now)
        if now == before:
            operation(driver)
            assert state(driver) == after, f"done again after a kill before change {number}"
        elif operation not in (exchange, relabel, purge):
            with pytest.raises((VolumeExistsError, VolumeNotFoundError)):
                operation(driver)
            assert state(driver) == after
        age(scope)
        driver.housekeep(never)
        assert state(driver) == after
        assert hidden_entries(scope) == []
        assert len(os.listdir(scope / "trash")) == len(after.removed) + leftover_made_way(scope)
        assert [path.read_text() for path in scope.rglob("note")] == ["kept"]
        driver.close()
    assert before in seen
    assert seen == sorted(seen, key=lambda one: one == after), "there is one moment of truth"


def leftover_made_way(scope: Path) -> int:
    """How many entries of the trash hold the directory that was no volume."""
    return len(list((scope / "trash").glob("*/volume/note")))


def test_killed_while_it_opens_a_scope(scope: Path) -> None:
    for number in itertools.count(1):
        shutil.rmtree(scope, ignore_errors=True)

        def run(number: int = number) -> None:
            calls = itertools.count(1)
            mkdir = os.mkdir

            def counting(*args: object, **kwargs: object) -> None:
                if next(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                mkdir(*args, **kwargs)  # type: ignore[arg-type]

            os.mkdir = counting
            LocalDriver(scope / "deep" / "er")

        killed = Child(run).was_killed()
        driver = LocalDriver(scope / "deep" / "er")
        assert driver.create("vol").name == "vol"
        driver.close()
        if not killed:
            break
    assert number > 4
