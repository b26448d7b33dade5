"""volume.json beside a volume's data: when it was made, its labels, its create options."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType

from volfs.errors import InvalidLabelError, InvalidNameError, UnknownOptionError
from volfs.linux.durable import read_small
from volfs.volume import Owner, check_name

FILE = "volume.json"
KNOWN_OPTIONS = ("from", "gid", "mode", "path", "uid")
"""The create options: ``uid`` and ``gid`` (decimal) and ``mode`` (octal) of the data path;
``from``, the name of the volume to start as a copy of; ``path``, ``tree`` or ``native``: which
of a volume's paths a runtime is told. The last means nothing to the driver, which keeps it."""

_log = logging.getLogger(__name__)
_SIZE_MAX = 1 << 20
_LABELS_MAX = _SIZE_MAX - 4096  # the rest of the file is small
_ID_MAX = 2**32 - 2  # the last one, -1, means "leave alone" to chown(2)
_PATHS = ("tree", "native")
_MODE_MAX = 0o3777  # setuid means nothing on a directory
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a volume besides its data. ``created_at`` is timezone-aware."""

    created_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    options: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


def encode(record: Record) -> bytes:
    """Return the record as the bytes of volume.json."""
    fields = {
        "created_at": record.created_at and record.created_at.isoformat(),
        "labels": dict(record.labels),
        "options": dict(record.options),
    }
    return json.dumps(fields, sort_keys=True, indent=2).encode() + b"\n"


def decode(data: bytes) -> Record:
    """Return the record in ``data``. Raises ValueError when it is none."""
    fields = json.loads(data)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return Record(
        parse_time(fields.get("created_at")),
        _strings(fields.get("labels")),
        _strings(fields.get("options")),
    )


def read(dir_fd: int, volume: str) -> Record:
    """Return the record of the volume in the directory ``dir_fd``; an empty one if it has none.

    ``volume`` is its name, for the log.
    """
    data = read_small(FILE, _SIZE_MAX, dir_fd=dir_fd)
    if data is None:
        return Record()
    try:
        return decode(data)
    except (ValueError, RecursionError) as error:
        _log.warning("%s of volume %r is passed over: %s", FILE, volume, error)
        return Record()


def parse_time(text: object) -> datetime | None:
    """Return the RFC 3339 time in ``text``, timezone-aware, or None if there is none."""
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def _strings(value: object) -> Mapping[str, str]:
    if value is None:
        return _NOTHING
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError("labels and options must be objects of strings")
    return MappingProxyType(value)


def check_options(options: Mapping[str, str]) -> dict[str, str]:
    """Return create options with their values in one spelling ("0755" becomes "755").

    Raises UnknownOptionError for an option that is not known or a value that is malformed.
    """
    checked: dict[str, str] = {}
    for name, value in options.items():
        match name:
            case "uid" | "gid":
                checked[name] = str(_number(name, value, 10, _ID_MAX))
            case "mode":
                checked[name] = format(_number(name, value, 8, _MODE_MAX), "o")
            case "from":
                checked[name] = _volume_name(name, value)
            case "path":
                if value not in _PATHS:
                    raise UnknownOptionError(f"option path={value}: give {' or '.join(_PATHS)}")
                checked[name] = value
            case _:
                known = ", ".join(KNOWN_OPTIONS)
                raise UnknownOptionError(f"unknown option {name!r}; the options are {known}")
    return checked


def _number(name: str, text: str, base: int, largest: int) -> int:
    digits, kind = ("[0-9]+", "a decimal") if base == 10 else ("[0-7]+", "an octal")
    if re.fullmatch(digits, text) and len(text) < 20 and int(text, base) <= largest:
        return int(text, base)
    most = str(largest) if base == 10 else format(largest, "o")
    raise UnknownOptionError(f"option {name}={text}: give {kind} number from 0 to {most}")


def _volume_name(name: str, text: str) -> str:
    try:
        return check_name(text)
    except InvalidNameError as error:
        raise UnknownOptionError(f"option {name}={text}: {error}") from None


def owner_of(options: Mapping[str, str], owner: Owner) -> Owner:
    """Return whose the data path is: what checked options say, else what ``owner`` says."""
    return Owner(
        int(options.get("uid", owner.uid)),
        int(options.get("gid", owner.gid)),
        int(options["mode"], 8) if "mode" in options else owner.mode & _MODE_MAX,
    )


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels that can be kept. Raises InvalidLabelError."""
    for name, value in labels.items():
        if not name:
            raise InvalidLabelError("a label needs a name")
        try:
            name.encode(), value.encode()
        except UnicodeEncodeError:
            raise InvalidLabelError(f"label {name!r} is not valid UTF-8") from None
    if len(encode(Record(labels=labels))) > _LABELS_MAX:
        raise InvalidLabelError(f"the labels take more than {_LABELS_MAX} bytes")
    return dict(labels)
