"""The store: the volumes of all drivers, who uses them, and so what may be done to them.

Calls drivers through the protocols of ``volfs.volume``, and linux; only ``opening``, which puts a
store together from a scope, knows the local driver. Start at ``store``. ``references`` keeps on
disk which runtimes use what, ``usage`` reads from /proc who has it mounted or open, ``trees`` tells
which trees of the scope there are, ``treepath`` what a path in one of them names. Daemons import
``housekeeping`` by itself: it needs trio, for which the command line has no time.
"""

from volfs.store.drivers import DriverRegistry
from volfs.store.opening import OpenScope, open_scope
from volfs.store.references import References
from volfs.store.store import Permit, VolumeStore
from volfs.store.table import Reference, ReferenceTable
from volfs.store.treepath import MountedTrees, TreePath
from volfs.store.trees import FSTYPE, Announcement, OpenFile, clear_announcements, device_at
from volfs.store.usage import (
    Scan,
    mount_holders,
    mount_users,
    mounted_devices,
    open_holders,
    tree_mounts,
)

__all__ = [
    "FSTYPE",
    "Announcement",
    "DriverRegistry",
    "MountedTrees",
    "OpenFile",
    "OpenScope",
    "Permit",
    "Reference",
    "ReferenceTable",
    "References",
    "Scan",
    "TreePath",
    "VolumeStore",
    "clear_announcements",
    "device_at",
    "mount_holders",
    "mount_users",
    "mounted_devices",
    "open_holders",
    "open_scope",
    "tree_mounts",
]
