"""The local driver: volumes as directories under a scope, and the trash they go to.

Calls copies, linux, volfs.volume and volfs.errors. Start at ``driver``, which says what a scope
looks like on disk. ``scope`` opens its directories, ``names`` gives and takes names by rename(2),
``staging`` prepares what is not yet a volume, ``sidecar`` keeps what is known of one besides its
data, ``trash`` what was removed.
"""

from volfs.local.driver import LocalDriver
from volfs.local.volume import LocalVolume

__all__ = ["LocalDriver", "LocalVolume"]
