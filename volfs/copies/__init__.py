"""Copies: a tree duplicated as it was at one point in time, or written as a tar archive.

Uses linux, volfs.errors and CopyReport; knows of trees, not of volumes. Start at ``tree``, which
walks: ``file`` duplicates one inode, ``marks`` tells what changed meanwhile. ``archive`` stands by
itself and is imported by those who pack and unpack only.
"""

from volfs.copies.file import NoReflinksError
from volfs.copies.tree import copy_tree

__all__ = ["NoReflinksError", "copy_tree"]
