"""What an entry of the trash says of itself: its name, and the record in it.

The name is its id: when the volume was removed, and something random; of a bare entry, which has
no record, the volume's name too.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from datetime import UTC, datetime

from volfs.volume import RemovedVolume

RECORD = "removed.json"
VOLUME = "volume"
RECORD_MAX = 1 << 16

_BARE = "~"
_TIME = "%Y%m%dT%H%M%S.%f"
_ID = re.compile(rf"\d{{8}}T\d{{6}}\.\d{{6}}Z-[0-9a-f]{{16}}({_BARE}.*)?", re.ASCII | re.DOTALL)
_NO_TIME = datetime.min.replace(tzinfo=UTC)
_BARE_NAME_MAX = 200
"""Bytes of a name that fit into that of an entry, with what is put before it."""


def new_id(now: datetime) -> str:
    """Return an id for an entry with a record."""
    return f"{now.strftime(_TIME)}Z-{secrets.token_hex(8)}"


def new_bare_id(now: datetime, name: str) -> str:
    """Return an id for a bare entry of the volume ``name``; a very long name is left out."""
    return f"{new_id(now)}{_BARE}{name if len(os.fsencode(name)) <= _BARE_NAME_MAX else ''}"


def is_id(name: str) -> bool:
    """Return whether something in the trash has the name of an entry."""
    return time_of(name) > _NO_TIME


def is_bare(id: str) -> bool:
    """Return whether an entry is a volume's own directory."""
    return _BARE in id


def directory_of(id: str) -> str:
    """Return the path, from the trash, of the volume's directory in an entry."""
    return id if is_bare(id) else f"{id}/{VOLUME}"


def time_of(id: str) -> datetime:
    """Return the time in an id, the first one there is when it is none."""
    if not _ID.fullmatch(id):
        return _NO_TIME
    try:
        return datetime.strptime(id.partition("Z")[0], _TIME).replace(tzinfo=UTC)
    except ValueError:  # month 13
        return _NO_TIME


def encode(name: str, now: datetime, by: str) -> bytes:
    """Return the record of a removal as bytes."""
    record = {"name": name, "removed_at": now.isoformat(), "by": by}
    return json.dumps(record).encode() + b"\n"


def decode(id: str, data: bytes) -> RemovedVolume:
    """Return what the id of an entry says, and its record."""
    try:
        record = json.loads(data)
        name, by = record["name"], record["by"]
        if not (isinstance(name, str) and isinstance(by, str)):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        # Whatever happened to the record, the data can be had back by its id.
        name, by = id.partition(_BARE)[2] or id, ""
    return RemovedVolume(id, name, time_of(id), by)
