"""Inodes: what the kernel knows of the tree, and what is open in it.

The ground that all requests stand on: node ids and lookup counts (``table``), descriptors that are
kept and found again (``reaching``), open files and directories (``handles``), what a backing
filesystem can do (``device``). Calls native and linux. Start at ``inode``.
"""

from volfs.fs.inodes.closing import Closing, is_long_freed
from volfs.fs.inodes.device import Device
from volfs.fs.inodes.handles import (
    Data,
    DirectoryHandle,
    FileHandle,
    HandleTable,
    RootHandle,
    appends_itself,
)
from volfs.fs.inodes.inode import ROOT_ID, Handle, Inode
from volfs.fs.inodes.listings import Listings
from volfs.fs.inodes.reaching import Descriptors
from volfs.fs.inodes.table import InodeTable

__all__ = [
    "ROOT_ID",
    "Closing",
    "Data",
    "Descriptors",
    "Device",
    "DirectoryHandle",
    "FileHandle",
    "Handle",
    "HandleTable",
    "Inode",
    "InodeTable",
    "Listings",
    "RootHandle",
    "appends_itself",
    "is_long_freed",
]
