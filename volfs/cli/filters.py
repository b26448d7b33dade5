"""Which volumes are meant: filters as Docker writes them, ``NAME=VALUE``.

The meaning is Docker's (moby: volume/service/convert.go, api/types/filters): filters of different
names must all match; of one name given several times, any must match for ``name`` and ``driver``,
all for ``label``. There are three differences, all in favour of keeping volumes:

- ``label!`` given several times excludes what any of them names. Docker excludes only what all
  of them name, which its users take for a fault.
- Where volumes are removed, ``name`` is a whole name or a pattern for whole names: a part of a
  name, or a regular expression, takes more than one thinks.
- ``until``, which Docker has for other objects, is a filter of volumes too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

from volfs.cli.durations import parse_duration
from volfs.volume import Volume

FILTERS = ("dangling", "driver", "label", "label!", "name", "until")
"""The names of all filters."""

_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, slots=True)
class Label:
    """A label asked for: its key, and its value unless any will do."""

    key: str
    value: str | None = None

    def is_on(self, volume: Volume) -> bool:
        """Tell whether the volume has it."""
        found = volume.labels.get(self.key)
        return found is not None and self.value in (None, found)


@dataclass(frozen=True, slots=True)
class Name:
    """A name asked for: the whole of it, or a regular expression for a part of it.

    With ``is_glob`` it is a pattern for the whole of it, as in a shell. Raises ValueError for what
    is no regular expression: one that stood for itself would match less than was meant.
    """

    text: str
    is_glob: bool = False

    def __post_init__(self) -> None:
        try:
            if not self.is_glob:
                re.compile(self.text)
        except re.error as error:
            raise ValueError(
                f"name={self.text} is no regular expression: {error}; a backslash before a"
                " character makes it stand for itself"
            ) from None

    def is_of(self, volume: Volume) -> bool:
        """Tell whether the volume has it."""
        if self.text == volume.name:
            return True
        if self.is_glob:
            return fnmatchcase(volume.name, self.text)
        return re.search(self.text, volume.name) is not None


@dataclass(frozen=True, slots=True)
class Filters:
    """What a volume has to be; without anything asked for, every volume matches.

    ``until`` is timezone-aware: the volume was made before. One of unknown age does not match.
    """

    names: tuple[Name, ...] = ()
    drivers: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    without: tuple[Label, ...] = ()
    dangling: bool | None = None
    until: datetime | None = None

    def matches(self, volume: Volume, in_use: Callable[[Volume], bool]) -> bool:
        """Tell whether the volume is meant.

        ``in_use`` says whether anything holds a volume. It is asked last, and only when that
        matters, since the answer can be slow.
        """
        return (
            (not self.names or any(name.is_of(volume) for name in self.names))
            and (not self.drivers or volume.driver_name in self.drivers)
            and all(label.is_on(volume) for label in self.labels)
            and not any(label.is_on(volume) for label in self.without)
            and (self.until is None or _is_before(volume.created_at, self.until))
            and (self.dangling is None or self.dangling is not in_use(volume))
        )


def parse_filters(
    words: Iterable[str],
    *,
    known: Collection[str] = FILTERS,
    globs: bool = False,
    now: datetime | None = None,
) -> Filters:
    """Return what ``NAME=VALUE`` filters ask for.

    ``known`` are the names allowed here. With ``globs``, names are patterns for whole names and no
    regular expressions for parts of them. ``now`` is when a duration given to ``until`` ends.
    Raises ValueError, saying which filters there are when one is not known.
    """
    given: dict[str, list[str]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().lower()
        if name not in known or not equals:
            what = f"unknown filter {name!r}" if equals else f"{word!r} is not NAME=VALUE"
            raise ValueError(f"{what}; the filters are {', '.join(known)}")
        values = given.setdefault(name, [])
        if value.strip() not in values:
            values.append(value.strip())
    return Filters(
        names=tuple(Name(text, globs) for text in given.get("name", ())),
        drivers=tuple(given.get("driver", ())),
        labels=tuple(_label(text) for text in given.get("label", ())),
        without=tuple(_label(text) for text in given.get("label!", ())),
        dangling=_boolean("dangling", given["dangling"]) if "dangling" in given else None,
        until=_moment(given["until"], now or datetime.now(UTC)) if "until" in given else None,
    )


def _label(text: str) -> Label:
    key, equals, value = text.partition("=")
    return Label(key, value if equals else None)


def _boolean(name: str, values: Collection[str]) -> bool:
    meant = {_BOOLEANS.get(value.lower()) for value in values}
    if meant == {True} or meant == {False}:
        return True in meant
    raise ValueError(f"{name}={','.join(values)} is neither true nor false")


def _moment(values: Collection[str], now: datetime) -> datetime:
    if len(values) > 1:
        raise ValueError("until can be given once")
    (text,) = values
    try:
        # As Docker has it, a number alone counts the seconds since 1970.
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            return datetime.fromtimestamp(float(text), UTC)
        if re.fullmatch(r"([0-9]+[smhdw])+", text):
            return now - timedelta(seconds=parse_duration(text))
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"until={text} is no time; write it like 24h, 7d, 2026-01-31 or 2026-01-31T18:00:00Z"
        ) from None


def _is_before(moment: datetime | None, end: datetime) -> bool:
    return moment is not None and moment < end
