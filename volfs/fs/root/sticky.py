"""Who may take away what lies in a directory with the sticky bit.

The kernel has checked that before the request came, but by what it remembered of the volume, and
its name may have become somebody else's since.
"""

from __future__ import annotations

from pathlib import Path

from volfs.linux.identity import Requester

_UNKNOWN = 0xFFFF_FFFF
"""The uid of who sent a request that makes nothing, where mounts can be idmapped."""
_CAP_FOWNER = 3


def may_take(ctx: Requester, *owners: int) -> bool:
    """Whether who sent a request is one of the owners, or has CAP_FOWNER (sticky(7))."""
    ids = _status(ctx.pid)
    uid = ctx.uid
    if uid == _UNKNOWN:
        if "Uid" not in ids:
            return True  # nothing can be told: what the kernel said is all there is
        uid = int(ids["Uid"].split()[3])
    if uid in owners:
        return True
    capabilities = ids.get("CapEff")
    return uid == 0 if capabilities is None else bool(int(capabilities, 16) >> _CAP_FOWNER & 1)


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return {}  # gone already, or in another pid namespace
    return {name: value for name, _, value in (line.partition(":") for line in lines)}
