"""Who may take away what lies in a directory with the sticky bit.

The kernel has checked that before the request came, but by what it remembered of the volume, and
its name may have become somebody else's since.
"""

from __future__ import annotations

from volfs.linux.identity import NOBODY, UNKNOWN, Requester, process
from volfs.linux.syscalls import CAP_FOWNER


def may_take(ctx: Requester, *owners: int) -> bool:
    """Whether who sent a request is one of the owners, or has CAP_FOWNER (sticky(7))."""
    caller = process(ctx.pid)
    if ctx.uid == UNKNOWN and caller is NOBODY:
        return True  # nothing can be told: what the kernel said is all there is
    uid = caller.uid if ctx.uid == UNKNOWN else ctx.uid
    return uid in owners or (uid == 0 if caller is NOBODY else caller.has(CAP_FOWNER))
