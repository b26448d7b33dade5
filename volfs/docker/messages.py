"""The messages of the volume plugin protocol, version 1: JSON objects both ways.

A request names a volume, perhaps who uses it, perhaps options; a reply holds what was asked
for, or ``Err`` with a text for people (docs/extend/plugins_volume.md of Docker).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
"""What moby and podman send and expect; neither looks at it."""

DRIVER_TYPE = "VolumeDriver"
"""What the plugin says that it implements."""

UNNAMED = "unnamed"
"""Who uses a volume when the request does not say, as before Docker 1.12."""

Reply = dict[str, object]


class MalformedError(ValueError):
    """A request is not a JSON object, or a field of it does not have the type it should."""


@dataclass(frozen=True, slots=True)
class Request:
    """What any of the requests can say. Fields that are missing or null are empty.

    ``id`` stands for the container that uses the volume; podman gives the same one for all.
    """

    name: str = ""
    id: str = UNNAMED
    options: Mapping[str, str] = field(default_factory=dict)


def parse(body: bytes) -> Request:
    """Return the request in ``body``; an empty body is an empty request. Raises MalformedError."""
    if not body.strip():
        return Request()
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the request is not JSON: {error}") from None
    if fields is None:
        return Request()
    if not isinstance(fields, dict):
        raise MalformedError("the request is not a JSON object")
    options = fields.get("Opts")
    if options is None:
        options = {}
    if not isinstance(options, dict) or not all(_is_text(value) for value in options.values()):
        raise MalformedError("Opts is no object of strings")
    return Request(_text(fields, "Name"), _text(fields, "ID") or UNNAMED, options)


def _text(fields: Mapping[str, object], key: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedError(f"{key} is no string")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def encode(reply: Reply) -> bytes:
    """Return the reply as the bytes of its JSON."""
    # In ASCII, which can also express what is not valid UTF-8.
    return json.dumps(reply).encode()


def failure(message: str) -> Reply:
    """Return the reply that says why something failed."""
    return {"Err": message or "failed"}


def time_text(time: datetime | None) -> str | None:
    """Return a time as moby wants it (RFC 3339); None where it cannot be written so."""
    if time is None:
        return None
    try:
        return time.astimezone(UTC).isoformat()
    except (OverflowError, ValueError):
        return None
