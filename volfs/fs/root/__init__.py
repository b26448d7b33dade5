"""The root: the store as a directory, whose entries are volumes.

``directory`` is where mkdir makes a volume and rmdir removes it; ``attributes`` are those that
volfs answers itself (``volfs.*``), ``holders`` who has files of a volume open. Calls the store,
files and inodes. Start at ``directory``.
"""

from volfs.fs.root.attributes import XATTR_PREFIX, VolumeAttributes
from volfs.fs.root.directory import Root, can_exist

__all__ = ["XATTR_PREFIX", "Root", "VolumeAttributes", "can_exist"]
