"""The boundary: what a request handler may fail with, and what the caller is told."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from pyfuse3 import FUSEError

from volfs.errors import VolfsError, VolumeInUseError

log = logging.getLogger(__name__)

S = TypeVar("S")
P = ParamSpec("P")
T = TypeVar("T")


def errno_of(error: Exception, request: str) -> int:
    """What the caller of ``request`` (its name, for the log) is told of a failure."""
    if isinstance(error, FUSEError):
        return error.errno
    if isinstance(error, OSError):
        # EMFILE would tell the caller of a limit of its own; the one reached is ours.
        return errno.ENFILE if error.errno == errno.EMFILE else error.errno or errno.EIO
    if isinstance(error, VolfsError):
        level = logging.INFO if isinstance(error, VolumeInUseError) else logging.DEBUG
        log.log(level, "%s: %s", request, error)
        return error.errno
    log.error("%s failed unexpectedly; answered EIO", request, exc_info=error)
    return errno.EIO


def boundary(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Let nothing but FUSEError out of a request handler: any other exception would end
    pyfuse3's loop. An expected failure gives its errno, an unexpected one EIO and a traceback in
    the log."""

    @functools.wraps(handler)
    async def bounded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:  # noqa: BLE001  (errno_of logs what is unexpected)
            raise FUSEError(errno_of(error, handler.__name__)) from None

    return bounded
