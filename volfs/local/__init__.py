"""The local driver: volumes as directories under a scope, and the trash they go to.

Calls copies, the words and linux. Start at ``driver``: ``scope`` opens the directories, ``names``
gives and takes names by rename(2), ``staging`` prepares what is not yet a volume, ``sidecar`` is
what a volume's file says of it.
"""

from volfs.local.driver import LocalDriver
from volfs.local.volume import LocalVolume

__all__ = ["LocalDriver", "LocalVolume"]
