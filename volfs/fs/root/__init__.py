"""The root."""

from volfs.fs.root.directory import Root

__all__ = ["Root"]
