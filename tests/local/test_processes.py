"""Several processes at work on one scope."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import all_at_once
from tests.local.scopes import (
    OpenDriver,
    contents,
    hidden_entries,
    make,
    removed_contents,
    write,
)
from volfs.errors import (
    OptionConflictError,
    VolumeExistsError,
    VolumeNotFoundError,
)
from volfs.linux.deletion import never
from volfs.local import LocalDriver
from volfs.volume import NewVolume

NAMES = ("a", "b", "c")


@pytest.fixture
def scope(quick_scope: Path) -> Path:
    return quick_scope


def each(functions: list[Callable[[LocalDriver], object]], scope: Path) -> list[object]:
    """Run each function in a process of its own, with a driver of its own."""
    LocalDriver(scope).close()

    def with_driver(function: Callable[[LocalDriver], object]) -> Callable[[], object]:
        return lambda: function(LocalDriver(scope))

    return all_at_once([with_driver(function) for function in functions])


def churn(seed: int) -> Callable[[LocalDriver], Counter[tuple[str, str]]]:
    """Create, remove and look at a few names at random; return what succeeded how often."""

    def run(driver: LocalDriver) -> Counter[tuple[str, str]]:
        chance = random.Random(seed)
        done: Counter[tuple[str, str]] = Counter()
        for _ in range(150):
            name = chance.choice(NAMES)
            match chance.randrange(3):
                case 0:
                    try:
                        make(driver, NewVolume(name, labels={"by": str(seed)}))
                        done["created", name] += 1
                    except VolumeExistsError:
                        pass
                case 1:
                    try:
                        driver.remove(driver.get(name))
                        done["removed", name] += 1
                    except VolumeNotFoundError:
                        pass
                case _:
                    try:
                        found = os.listdir(f"{driver.scope}/volumes/{name}")
                    except FileNotFoundError:
                        continue
                    done["incomplete", name] += set(found) != {"_data", "volume.json"}
        return done

    return run


def test_of_every_creation_and_removal_exactly_one_succeeds(
    scope: Path, open_driver: OpenDriver
) -> None:
    results = each([churn(1), churn(2), churn(3)], scope)
    done: Counter[tuple[str, str]] = Counter()
    for result in results:
        assert isinstance(result, Counter)
        done += result
    driver = open_driver()
    removed = Counter(entry.name for entry in driver.trash.list())
    for name in NAMES:
        assert done["created", name] > 1
        assert done["incomplete", name] == 0
        assert done["created", name] - done["removed", name] == (name in driver.names())
        assert removed[name] == done["removed", name]


def test_all_who_create_a_name_get_the_one_volume(scope: Path, open_driver: OpenDriver) -> None:
    def create(number: int) -> Callable[[LocalDriver], list[str]]:
        def run(driver: LocalDriver) -> list[str]:
            return [
                driver.create(NewVolume(f"vol{i}", labels={"by": str(number)})).labels["by"]
                for i in range(40)
            ]

        return run

    answers = each([create(number) for number in range(3)], scope)
    driver = open_driver()
    truth = [driver.get(f"vol{i}").labels["by"] for i in range(40)]
    assert answers == [truth] * 3


def test_two_who_want_other_options_do_not_both_get_them(
    scope: Path, open_driver: OpenDriver
) -> None:
    def create(mode: str) -> Callable[[LocalDriver], list[bool]]:
        def attempt(driver: LocalDriver, name: str) -> bool:
            try:
                return driver.create(NewVolume(name, {"mode": mode})).options == {"mode": mode}
            except OptionConflictError:
                return False

        return lambda driver: [attempt(driver, f"vol{i}") for i in range(40)]

    one, other = each([create("700"), create("750")], scope)
    assert isinstance(one, list)
    assert isinstance(other, list)
    driver = open_driver()
    for i, (first, second) in enumerate(zip(one, other, strict=True)):
        assert first != second
        volume = driver.get(f"vol{i}")
        mode = "700" if first else "750"
        assert volume.options == {"mode": mode}
        assert os.stat(volume.path).st_mode & 0o777 == int(mode, 8)


def test_a_directory_without_data_is_adopted_by_exactly_one(
    scope: Path, open_driver: OpenDriver
) -> None:
    for i in range(20):
        (scope / "volumes" / f"vol{i}").mkdir(parents=True)
        (scope / "volumes" / f"vol{i}" / "note").write_text(f"{i}")

    def create(number: int) -> Callable[[LocalDriver], list[bool]]:
        def attempt(driver: LocalDriver, name: str) -> bool:
            try:
                make(driver, NewVolume(name, labels={"by": str(number)}))
            except VolumeExistsError:
                return False
            return True

        return lambda driver: [attempt(driver, f"vol{i}") for i in range(20)]

    answers = each([create(number) for number in range(3)], scope)
    driver = open_driver()
    for i in range(20):
        made = [number for number, answer in enumerate(answers) if answer[i]]  # type: ignore[index]
        assert [driver.get(f"vol{i}").labels["by"]] == [str(number) for number in made]
    notes = sorted(int(path.read_text()) for path in (scope / "trash").glob("*/volume/note"))
    assert notes == list(range(20))
    assert driver.trash.list() == []


@pytest.mark.parametrize("target", ["same", "own"])
def test_a_volume_renamed_by_two_goes_to_one(
    scope: Path, open_driver: OpenDriver, target: str
) -> None:
    driver = open_driver()
    for i in range(30):
        write(driver.create(f"vol{i}").path, f"{i}")

    def rename(number: int) -> Callable[[LocalDriver], list[str]]:
        def attempt(driver: LocalDriver, i: int) -> str:
            new_name = f"new{i}" if target == "same" else f"new{i}-{number}"
            try:
                return driver.rename(driver.get(f"vol{i}"), new_name).name
            except VolumeNotFoundError:
                return ""

        return lambda driver: [attempt(driver, i) for i in range(30)]

    one, other = each([rename(0), rename(1)], scope)
    assert isinstance(one, list)
    assert isinstance(other, list)
    for first, second in zip(one, other, strict=True):
        assert bool(first) != bool(second)
    winners = [first or second for first, second in zip(one, other, strict=True)]
    expected = {name: str(i) for i, name in enumerate(winners)}
    assert contents(driver) == expected


def test_a_removed_volume_is_restored_or_purged_by_one(
    scope: Path, open_driver: OpenDriver
) -> None:
    driver = open_driver()
    for i in range(30):
        write(driver.create(f"vol{i}").path, f"{i}")
        driver.remove(driver.get(f"vol{i}"))
    ids = {entry.name: entry.id for entry in driver.trash.list()}

    def restore(suffix: str) -> Callable[[LocalDriver], list[bool]]:
        def attempt(driver: LocalDriver, name: str) -> bool:
            try:
                driver.restore(ids[name], name + suffix)
            except VolumeNotFoundError:
                return False
            return True

        return lambda driver: [attempt(driver, f"vol{i}") for i in range(30)]

    def purge(driver: LocalDriver) -> list[bool]:
        def attempt(name: str) -> bool:
            try:
                return bool(driver.trash.purge([ids[name]]))
            except VolumeNotFoundError:
                return False

        return [attempt(f"vol{i}") for i in range(30)]

    answers = each([restore("-x"), restore("-y"), purge], scope)
    assert removed_contents(driver) == []
    restored = contents(driver)
    for i in range(30):
        x, y, purged = (answer[i] for answer in answers)  # type: ignore[index]
        assert x + y + purged == 1
        for suffix, here in (("-x", x), ("-y", y)):
            assert restored.get(f"vol{i}{suffix}") == (str(i) if here else None)


def test_housekeepers_do_not_disturb_each_other_or_anybody(
    scope: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def housekeep(driver: LocalDriver) -> list[str]:
        keeper = LocalDriver(scope, keep_removed=0)
        while not (scope / "end").exists():
            keeper.housekeep(never)
        return [record.getMessage() for record in caplog.records]

    def work(driver: LocalDriver) -> list[str]:
        for i in range(60):
            volume = make(driver, f"vol{i % 7}")
            Path(volume.path, "a", "b").mkdir(parents=True)
            write(volume.path, "x", "a/b/file")
            driver.remove(volume)
        (scope / "end").write_text("")
        return driver.names()

    assert each([housekeep, housekeep, work], scope) == [[], [], []]
    driver = LocalDriver(scope, keep_removed=0)
    driver.housekeep(never)
    assert os.listdir(scope / "trash") == []
    assert hidden_entries(scope) == []
    driver.close()
