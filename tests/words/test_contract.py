"""What every driver promises: see volfs.volume.Driver. Each test runs on each driver."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.local.scopes import make
from tests.words.memory import MemoryDriver
from volfs.errors import (
    InvalidNameError,
    NameTooLongError,
    OptionConflictError,
    UnknownOptionError,
    VolumeExistsError,
    VolumeNotFoundError,
)
from volfs.local import LocalDriver
from volfs.volume import Driver, NewVolume

DRIVERS: dict[str, Callable[[Path], Driver]] = {
    "local": LocalDriver,
    "memory": MemoryDriver,
}


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Driver]:
    driver = DRIVERS[request.param](tmp_path)
    yield driver
    driver.close()


def test_a_new_driver_has_no_volumes(driver: Driver) -> None:
    assert list(driver.list()) == []
    assert list(driver.names()) == []


def test_a_created_volume_is_found_and_listed(driver: Driver) -> None:
    created = driver.create(NewVolume("vol", labels={"app": "db"}))
    for volume in (created, driver.get("vol"), driver.list()[0]):
        assert volume.name == "vol"
        assert volume.driver_name == driver.name
        assert volume.path == os.path.realpath(created.path)
        assert volume.labels == {"app": "db"}
        assert volume.options == {}
    assert list(driver.names()) == ["vol"]


def test_the_data_path_is_an_empty_directory_that_keeps_what_is_written(driver: Driver) -> None:
    path = Path(driver.create("vol").path)
    assert list(path.iterdir()) == []
    (path / "file").write_text("kept")
    assert Path(driver.create("vol").path, "file").read_text() == "kept"


def test_mount_says_where_the_data_is_as_often_as_one_asks(driver: Driver) -> None:
    volume = driver.create("vol")
    place = volume.mount()
    assert os.path.isdir(place)
    assert volume.mount() == place
    volume.unmount()
    volume.unmount()


def test_the_time_of_creation_is_aware_and_stays(driver: Driver) -> None:
    created_at = driver.create("vol").created_at
    assert created_at is not None
    assert abs(datetime.now(UTC) - created_at) < timedelta(minutes=1)
    os.chmod(driver.get("vol").path, 0o700)
    volume = driver.rename(driver.get("vol"), "other")
    assert volume.created_at == created_at
    assert driver.get("other").created_at == created_at


def test_lists_are_sorted_by_name(driver: Driver) -> None:
    for name in ("b", "a", "C", "é"):
        driver.create(name)
    assert list(driver.names()) == ["C", "a", "b", "é"]
    assert [volume.name for volume in driver.list()] == ["C", "a", "b", "é"]


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-v", " x", "x ", "a/b", "a:b", "a\n"])
def test_a_bad_name_is_refused(driver: Driver, name: str) -> None:
    volume = driver.create("vol")
    with pytest.raises(InvalidNameError):
        driver.create(name)
    with pytest.raises(InvalidNameError):
        driver.rename(volume, name)
    with pytest.raises(VolumeNotFoundError):
        driver.get(name)
    assert list(driver.names()) == ["vol"]


def test_a_name_has_at_most_255_bytes(driver: Driver) -> None:
    driver.create("é" * 127 + "x")
    with pytest.raises(NameTooLongError):
        driver.create("é" * 128)


def test_an_unknown_volume_is_not_found(driver: Driver) -> None:
    volume = driver.create("vol")
    driver.remove(volume)
    other = driver.create("other")
    with pytest.raises(VolumeNotFoundError):
        driver.get("vol")
    with pytest.raises(VolumeNotFoundError):
        driver.remove(volume)
    with pytest.raises(VolumeNotFoundError):
        driver.rename(volume, "new")
    with pytest.raises(VolumeNotFoundError):
        driver.exchange(volume, other)
    with pytest.raises(VolumeNotFoundError):
        driver.exchange(other, volume)
    with pytest.raises(VolumeNotFoundError):
        driver.set_labels(volume, {})
    assert list(driver.names()) == ["other"]


def test_create_again_returns_the_volume_as_it_is(driver: Driver) -> None:
    created = driver.create(NewVolume("vol", {"mode": "700"}, labels={"a": "1"}))
    for options in ({}, {"mode": "700"}):
        again = driver.create(NewVolume("vol", options, labels={"b": "2"}))
        assert again.path == created.path
        assert again.created_at == created.created_at
        assert again.options == {"mode": "700"}
        assert again.labels == {"a": "1"}


def test_other_options_for_an_existing_volume_are_a_conflict(driver: Driver) -> None:
    driver.create(NewVolume("vol", {"mode": "700"}))
    driver.create("plain")
    for name in ("vol", "plain"):
        with pytest.raises(OptionConflictError):
            driver.create(NewVolume(name, {"mode": "711"}))
    assert driver.get("vol").options == {"mode": "700"}


def test_make_takes_no_existing_volume(driver: Driver) -> None:
    make(driver, "vol")
    for new in ("vol", NewVolume("vol"), NewVolume("vol", {"mode": "700"})):
        with pytest.raises(VolumeExistsError):
            driver.make(new)


def test_make_hands_back_what_it_made(driver: Driver) -> None:
    volume, fd = driver.make(NewVolume("vol", {"mode": "711"}, {"a": "b"}))
    try:
        assert (volume.options, volume.labels) == ({"mode": "711"}, {"a": "b"})
        assert volume.path == driver.get("vol").path
        assert os.path.samestat(os.fstat(fd), os.stat(volume.mount()))
        with pytest.raises(OSError, match="descriptor"):
            os.listdir(fd)  # O_PATH: whoever wants to read asks for that
    finally:
        os.close(fd)


def test_an_unknown_option_is_named_with_the_known_ones(driver: Driver) -> None:
    with pytest.raises(UnknownOptionError, match=r"size.*mode"):
        driver.create(NewVolume("vol", {"size": "1G"}))
    assert list(driver.names()) == []


def test_a_removed_name_makes_a_new_empty_volume(driver: Driver) -> None:
    Path(driver.create("vol").path, "file").write_text("old")
    driver.remove(driver.get("vol"), by="somebody")
    assert list(driver.names()) == []
    assert os.listdir(make(driver, "vol").path) == []


def test_rename_keeps_everything_but_the_name(driver: Driver) -> None:
    volume = driver.create(NewVolume("old", {"mode": "750"}, labels={"a": "1"}))
    Path(volume.path, "file").write_text("kept")
    renamed = driver.rename(volume, "new")
    assert list(driver.names()) == ["new"]
    assert renamed.name == "new"
    assert renamed.path == driver.get("new").path
    assert renamed.labels == {"a": "1"}
    assert renamed.options == {"mode": "750"}
    assert Path(renamed.path, "file").read_text() == "kept"


def test_rename_to_its_own_name_changes_nothing(driver: Driver) -> None:
    volume = driver.create("vol")
    assert driver.rename(volume, "vol").path == volume.path
    assert list(driver.names()) == ["vol"]


def test_rename_does_not_replace_a_volume(driver: Driver) -> None:
    one, other = driver.create("one"), driver.create("other")
    with pytest.raises(VolumeExistsError):
        driver.rename(one, "other")
    assert list(driver.names()) == ["one", "other"]
    assert driver.get("other").path == other.path


def test_exchange_swaps_data_and_labels(driver: Driver) -> None:
    for name in ("one", "other"):
        Path(driver.create(NewVolume(name, labels={"was": name})).path, "file").write_text(name)
    driver.exchange(driver.get("one"), driver.get("other"))
    for name, was in (("one", "other"), ("other", "one")):
        volume = driver.get(name)
        assert Path(volume.path, "file").read_text() == was
        assert volume.labels == {"was": was}


def test_exchange_with_itself_changes_nothing(driver: Driver) -> None:
    volume = driver.create(NewVolume("vol", labels={"a": "1"}))
    driver.exchange(volume, volume)
    assert driver.get("vol").labels == {"a": "1"}


def test_labels_are_replaced_as_a_whole(driver: Driver) -> None:
    volume = driver.create(NewVolume("vol", {"mode": "750"}, labels={"a": "1", "b": "2"}))
    changed = driver.set_labels(volume, {"b": "3", "ü": ""})
    for seen in (changed, driver.get("vol")):
        assert seen.labels == {"b": "3", "ü": ""}
        assert seen.options == {"mode": "750"}
        assert seen.created_at == volume.created_at


def test_of_many_who_want_one_name_exactly_one_makes_it(driver: Driver) -> None:
    crowd = 8
    start = threading.Barrier(crowd)

    def create(number: int) -> bool:
        start.wait()
        try:
            make(driver, f"vol{number // crowd}")
        except VolumeExistsError:
            return False
        return True

    with ThreadPoolExecutor(crowd) as threads:
        made = list(threads.map(create, range(crowd * 10)))
    assert [sum(made[i : i + crowd]) for i in range(0, len(made), crowd)] == [1] * 10


def test_housekeeping_leaves_the_volumes_alone(driver: Driver) -> None:
    Path(driver.create("vol").path, "file").write_text("kept")
    driver.housekeep(lambda: False)
    assert Path(driver.get("vol").path, "file").read_text() == "kept"
