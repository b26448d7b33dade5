"""Files: everything below a volume, as the backing filesystem does it.

``names`` (look up, make, rename, remove), ``attributes``, ``opening``, ``writing``; ``passthrough``
lets the kernel read and write open files itself; ``ranges`` and ``flags`` are the rarer requests on
open files, ``cache`` says how long the kernel may answer from memory. Plain synchronous functions
on inodes and handles: calls inodes, native and linux. Start at ``names``.
"""

from volfs.fs.files.attributes import Attributes, Changes
from volfs.fs.files.cache import CachePolicy
from volfs.fs.files.names import Found, Names
from volfs.fs.files.opening import Opened, Opening
from volfs.fs.files.passthrough import Passthrough
from volfs.fs.files.writing import Writing

__all__ = [
    "Attributes",
    "CachePolicy",
    "Changes",
    "Found",
    "Names",
    "Opened",
    "Opening",
    "Passthrough",
    "Writing",
]
