"""Inodes."""

from volfs.fs.inodes.table import InodeTable

__all__ = ["InodeTable"]
