"""Plain: the requests that pyfuse3 brings, where there is no tap.

``operations`` are pyfuse3's methods, ``entries`` makes its objects. Simple and right, not quick.
Calls requests. Start at ``operations``.
"""

from volfs.fs.plain.entries import Entries
from volfs.fs.plain.operations import VolumeFS

__all__ = ["Entries", "VolumeFS"]
