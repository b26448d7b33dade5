"""Create options, labels, and the file that keeps them."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volfs.errors import InvalidLabelError, UnknownOptionError
from volfs.local.sidecar import Record, check_labels, check_options, decode, encode, owner_of
from volfs.volume import Owner

utf8 = st.text(st.characters(exclude_categories=["Cs"]))
strings = st.dictionaries(utf8, utf8)
zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.none() | st.datetimes(timezones=zones)


@given(times, strings, strings)
def test_a_record_survives_writing_and_reading(
    created_at: datetime | None, labels: dict[str, str], options: dict[str, str]
) -> None:
    record = Record(created_at, labels, options)
    assert decode(encode(record)) == record


@given(st.binary())
def test_garbage_is_an_error_and_no_crash(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(decode(data), Record)


@pytest.mark.parametrize(
    "data", [b"[]", b"1", b'{"labels": []}', b'{"labels": {"a": 1}}', b'{"options": {"a": null}}']
)
def test_json_of_another_shape_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ('"2024-02-03T04:05:06Z"', datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ('"2024-02-03T04:05:06"', datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ('"2024-02-03T05:05:06.5+01:00"', datetime(2024, 2, 3, 4, 5, 6, 500000, tzinfo=UTC)),
        ('"yesterday"', None),
        ("17", None),
        ("null", None),
    ],
)
def test_times_are_read_with_their_zone_or_as_utc(text: str, time: datetime | None) -> None:
    found = decode(b'{"created_at": %s}' % text.encode()).created_at
    assert found == time
    assert found is None or found.tzinfo is not None


@pytest.mark.parametrize(
    ("given_options", "normalised"),
    [
        ({}, {}),
        ({"mode": "0755"}, {"mode": "755"}),
        ({"mode": "3777"}, {"mode": "3777"}),
        ({"mode": "0"}, {"mode": "0"}),
        ({"uid": "007", "gid": "4294967294"}, {"uid": "7", "gid": "4294967294"}),
        ({"from": "vol 1 (copy)", "path": "native"}, {"from": "vol 1 (copy)", "path": "native"}),
        ({"path": "tree"}, {"path": "tree"}),
    ],
)
def test_option_values_get_one_spelling(
    given_options: dict[str, str], normalised: dict[str, str]
) -> None:
    assert check_options(given_options) == normalised


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", ""),
        ("mode", "8"),
        ("mode", "0o755"),
        ("mode", "4755"),
        ("mode", "-1"),
        ("mode", "7" * 5000),
        ("mode", "rwxr-xr-x"),
        ("uid", "root"),
        ("uid", "-1"),
        ("uid", "1 "),
        ("uid", "1_0"),
        ("uid", "\u0661"),
        ("gid", "4294967295"),
        ("gid", "9" * 5000),
    ],
)
def test_a_malformed_value_is_refused_with_what_to_give(name: str, value: str) -> None:
    with pytest.raises(UnknownOptionError, match=f"{name}=.*give a.* number from 0 to"):
        check_options({name: value})


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "x" * 256, "\udcff"])
def test_a_copy_is_only_of_what_can_be_a_volume(name: str) -> None:
    with pytest.raises(UnknownOptionError, match=r"option from=.*volume name"):
        check_options({"from": name})


@pytest.mark.parametrize("value", ["", "Native", "/srv"])
def test_the_path_told_is_one_of_two(value: str) -> None:
    with pytest.raises(UnknownOptionError, match=r"option path=.*give tree or native"):
        check_options({"path": value})


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownOptionError, match=r"'size'.* from, gid, mode, path, uid"):
        check_options({"mode": "700", "size": "1G"})


def test_options_go_before_the_owner_asked_for() -> None:
    asked = Owner(1, 2, 0o700)
    assert owner_of({}, asked) == asked
    assert owner_of({"uid": "5"}, asked) == Owner(5, 2, 0o700)
    assert owner_of({"gid": "5", "mode": "1777"}, asked) == Owner(1, 5, 0o1777)


def test_setuid_means_nothing_on_a_directory() -> None:
    assert owner_of({}, Owner(0, 0, 0o6755)).mode == 0o2755


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"},
        {"a": "\ud800"},
        {"\udc80": "x"},
        {"a": "x" * (1 << 20)},
        {"a": "\x01" * (1 << 18)},
    ],
)
def test_labels_that_could_not_be_read_back_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(InvalidLabelError):
        check_labels(labels)
