"""The same operation in the tree and in a plain directory of the same disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def outcome(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | str:
    """What ``call`` returns, or the name of the errno it fails with."""
    try:
        return call(*args, **kwargs)
    except OSError as error:
        assert error.errno is not None, error
        return errno.errorcode[error.errno]


def differences(expected: object, found: object) -> Iterator[tuple[object, object]]:
    """The smallest parts of two results that differ."""
    if (
        isinstance(expected, list | tuple)
        and isinstance(found, list | tuple)
        and len(expected) == len(found)
    ):
        for pair in zip(expected, found, strict=True):
            yield from differences(*pair)
    elif expected != found:
        yield expected, found


@dataclass(frozen=True)
class Pair:
    """A directory in the tree, the same one behind the mount, and a plain one elsewhere.

    ``native`` is on the same filesystem as ``data``, so that it says what is right.
    """

    mounted: Path
    data: Path
    native: Path

    def same(self, operation: Callable[[Path], T]) -> T | str:
        """Run ``operation`` on the plain directory and in the tree; the outcomes must be equal."""
        expected = outcome(operation, self.native)
        found = outcome(operation, self.mounted)
        different = list(differences(expected, found))
        assert not different, "\n".join(f"native {a!r}, mounted {b!r}" for a, b in different)
        return expected

    def behind(self, path: Path) -> Path:
        """Where on the disk that is which is at ``path`` on one of the two sides."""
        if path.is_relative_to(self.mounted):
            return self.data / path.relative_to(self.mounted)
        return path

    def chmod(self, mode: int) -> None:
        """Set the mode of both directories."""
        self.native.chmod(mode)
        self.mounted.chmod(mode)

    def chown(self, uid: int, gid: int) -> None:
        """Set the owner of both directories."""
        os.chown(self.native, uid, gid)
        os.chown(self.mounted, uid, gid)


def owned(path: Path | str) -> tuple[str, int, int]:
    """Mode in octal, owner and group of what is at ``path`` itself."""
    status = os.lstat(path)
    return oct(status.st_mode), status.st_uid, status.st_gid
