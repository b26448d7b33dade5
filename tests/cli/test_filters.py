"""Filters of volumes: Docker's words with Docker's meaning."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.words.volumes import PlainVolume
from volfs.cli.filters import FILTERS, parse_filters
from volfs.volume import Volume

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WEB = PlainVolume("web", created_at=NOW)


def matches(volume: Volume, *words: str, in_use: bool = False) -> bool:
    return parse_filters(words, now=NOW).matches(volume, lambda _: in_use)


def test_nothing_asked_for_is_all() -> None:
    assert matches(WEB)


@pytest.mark.parametrize(
    ("name", "words", "meant"),
    [
        ("web", ["name=web"], True),
        ("web-1", ["name=web"], True),  # a part of it will do
        ("my web", ["name=web"], True),
        ("Web", ["name=web"], False),
        ("Web", ["name=(?i)web"], True),
        ("web", ["name=^w.b$"], True),
        ("webs", ["name=^w.b$"], False),
        ("db", ["name=web", "name=db"], True),  # any of them
        ("cache", ["name=web", "name=db"], False),
        ("vol (copy 1)", ["name=vol (copy 1)"], True),  # the whole name, whatever it means
        ("vol (copy 1)", ["name=\\(copy"], True),
        ("vol copy", ["name=\\(copy"], False),
        ("a+b", ["name=a+b"], True),
        ("web", ["name="], True),
    ],
)
def test_name(name: str, words: list[str], meant: bool) -> None:
    assert matches(replace(WEB, name=name), *words) is meant


@pytest.mark.parametrize("text", ["(copy", "web[", "*", "a{2,1}", "\\"])
def test_what_is_no_regular_expression(text: str) -> None:
    with pytest.raises(ValueError, match=f"name={re.escape(text)} is no regular expression"):
        parse_filters([f"name={text}"])


@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [
        ("web", "web", True),
        ("web-1", "web", False),  # not a part of it
        ("web-1", "web-*", True),
        ("web-1", "web-?", True),
        ("web-1", "web-[12]", True),
        ("web-3", "web-[12]", False),
        ("Web", "web", False),
        ("web", "^web$", False),
        ("web", "w.b", False),
        ("vol (copy 1)", "vol (*", True),
        ("a[1]", "a[1]", True),  # the whole name, whatever it means
        ("web", "", False),
    ],
)
def test_patterns(name: str, text: str, meant: bool) -> None:
    filters = parse_filters([f"name={text}"], globs=True)
    assert filters.matches(replace(WEB, name=name), lambda _: False) is meant


@pytest.mark.parametrize(
    ("labels", "words", "meant"),
    [
        ({"team": "blue"}, ["label=team"], True),
        ({"team": ""}, ["label=team"], True),
        ({"team": "blue"}, ["label=team=blue"], True),
        ({"team": "blue"}, ["label=team=red"], False),
        ({"team": "blue"}, ["label=team="], False),
        ({"team": ""}, ["label=team="], True),
        ({"team": "a=b"}, ["label=team=a=b"], True),
        ({"teams": "blue"}, ["label=team"], False),
        ({}, ["label=team"], False),
        ({"a": "1", "b": "2"}, ["label=a", "label=b=2"], True),  # all of them
        ({"a": "1"}, ["label=a", "label=b"], False),
        ({"a": "1"}, ["label=a=1", "label=a=2"], False),
        ({"a": "1"}, ["label!=a"], False),
        ({"a": "1"}, ["label!=a=2"], True),
        ({"a": "1"}, ["label!=b"], True),
        ({}, ["label!=a"], True),
        ({"a": "1"}, ["label!=a", "label!=b"], False),  # each of them keeps it out
        ({"a": "1", "b": "2"}, ["label=a", "label!=b"], False),
        ({"a": "1"}, [" Label = a "], True),  # as Docker trims it
    ],
)
def test_label(labels: dict[str, str], words: list[str], meant: bool) -> None:
    assert matches(replace(WEB, labels=labels), *words) is meant


def test_driver() -> None:
    assert matches(WEB, "driver=local")
    assert matches(WEB, "driver=other", "driver=local")
    assert not matches(WEB, "driver=loc")


@pytest.mark.parametrize("word", ["true", "1", "True"])
def test_dangling(word: str) -> None:
    assert matches(WEB, f"dangling={word}")
    assert not matches(WEB, f"dangling={word}", in_use=True)


@pytest.mark.parametrize("word", ["false", "0"])
def test_not_dangling(word: str) -> None:
    assert not matches(WEB, f"dangling={word}")
    assert matches(WEB, f"dangling={word}", in_use=True)


def test_who_uses_it_is_asked_only_where_it_matters() -> None:
    def never(volume: Volume) -> bool:
        raise AssertionError

    assert parse_filters(["name=web"]).matches(WEB, never)
    assert not parse_filters(["name=db", "dangling=true"]).matches(WEB, never)


def test_different_filters_have_all_to_match() -> None:
    volume = replace(WEB, labels={"team": "blue"})
    assert matches(volume, "name=web", "label=team", "driver=local", "dangling=1")
    assert not matches(volume, "name=db", "label=team")


@pytest.mark.parametrize(
    ("text", "age", "meant"),
    [
        ("24h", timedelta(hours=25), True),
        ("24h", timedelta(hours=23), False),
        ("1d12h", timedelta(hours=37), True),
        ("2026-03-01T12:00:00Z", timedelta(seconds=1), True),
        ("2026-03-01T13:00:00+01:00", timedelta(0), False),
        ("2026-02-01", timedelta(days=40), True),
        ("2026-02-01", timedelta(days=20), False),
        (str(int(NOW.timestamp())), timedelta(seconds=1), True),
        (str(int(NOW.timestamp())), timedelta(0), False),
        ("90", timedelta(days=365), False),  # a number is a moment, as for Docker
    ],
)
def test_until(text: str, age: timedelta, meant: bool) -> None:
    assert matches(replace(WEB, created_at=NOW - age), f"until={text}") is meant


def test_of_unknown_age() -> None:
    assert not matches(replace(WEB, created_at=None), "until=0s")
    assert matches(replace(WEB, created_at=None))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["color=red"], "unknown filter 'color'; the filters are dangling, driver, label, label!"),
        (["web"], "'web' is not NAME=VALUE; the filters are"),
        (["name"], "'name' is not NAME=VALUE"),
        ([""], "is not NAME=VALUE"),
        (["=web"], "unknown filter ''"),
        (["dangling=maybe"], "dangling=maybe is neither true nor false"),
        (["dangling="], "neither"),
        (["dangling=true", "dangling=0"], "dangling=true,0 is neither"),
        (["dangling=true", "dangling=maybe"], "neither"),
        (["until=soon"], "until=soon is no time; write it like 24h"),
        (["until="], "no time"),
        (["until=1h", "until=2h"], "once"),
        ([f"until={'9' * 400}"], "no time"),
        ([f"until={'9' * 400}d"], "no time"),
    ],
)
def test_complaints(words: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_filters(words)


def test_some_are_not_for_every_command() -> None:
    known = [name for name in FILTERS if name != "dangling"]
    with pytest.raises(ValueError, match="unknown filter 'dangling'; the filters are driver,"):
        parse_filters(["dangling=true"], known=known)


def test_the_same_twice_is_as_good_as_once() -> None:
    assert parse_filters(["dangling=1", "dangling=1"]) == parse_filters(["dangling=1"])
