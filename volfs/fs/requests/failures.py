"""What the caller of a request is told when it fails."""

from __future__ import annotations

import errno
import logging

from volfs.errors import VolfsError, VolumeInUseError

log = logging.getLogger(__name__)


def errno_of(error: Exception, request: str) -> int:
    """The errno to answer ``request`` (its name, for the log) with.

    An expected failure has one; an unexpected one is EIO and a traceback in the log.
    """
    if isinstance(error, OSError):
        # EMFILE would tell the caller of a limit of its own; the one reached is the daemon's.
        return errno.ENFILE if error.errno == errno.EMFILE else error.errno or errno.EIO
    if isinstance(error, VolfsError):
        level = logging.INFO if isinstance(error, VolumeInUseError) else logging.DEBUG
        log.log(level, "%s: %s", request, error)
        return error.errno
    log.error("%s failed unexpectedly; answered EIO", request, exc_info=error)
    return errno.EIO
