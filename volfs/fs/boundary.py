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
        except OSError as error:
            # EMFILE would tell the caller of a limit of its own; the one reached is ours.
            code = errno.ENFILE if error.errno == errno.EMFILE else error.errno
            raise FUSEError(code or errno.EIO) from None
        except VolfsError as error:
            level = logging.INFO if isinstance(error, VolumeInUseError) else logging.DEBUG
            log.log(level, "%s: %s", handler.__name__, error)
            raise FUSEError(error.errno) from None
        except Exception:
            log.exception("%s failed unexpectedly; answered EIO", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return bounded
