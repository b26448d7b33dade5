"""Rules: which calls are not made, since what they would show is a known difference.

Each has its line in KNOWN DIFFERENCES of volfs-tree(7), unless it is about what cannot be compared
at all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from tests.levels import LEVELS, Level
from tests.mount.likeness.attributes import FIONREAD, FS_IOC_FSSETXATTR, STATX_BTIME, TCGETS
from tests.mount.likeness.calls import ROOT
from tests.mount.likeness.choosing import Draft
from tests.mount.likeness.world import World

_KEEP, _PUNCH, _ZERO = 1, 2, 16
_WRITES = ("write", "pwrite", "writev", "pwritev2", "fallocate", "truncate", "poke")
_PASSED_THROUGH = ("write", "pwrite", "writev", "pwritev2", "poke", "sendfile", "splice")
_TRANSFERS = ("copy_file_range", "sendfile", "splice")
_AT_A_POSITION = (
    *("lseek", "read", "readv", "preadv2", "write", "writev", "pwritev2", "lock"),
    *_TRANSFERS,
)
_PRIVILEGES = stat.S_ISUID | stat.S_ISGID
_LARGEST = (1 << 44) - 4096
"""Bytes of a file on ext4 with blocks of 4 KiB."""
_WILLNEED = os.POSIX_FADV_WILLNEED
_RWF_APPEND, _RWF_NOAPPEND, _RWF_DONTCACHE = 16, 32, 128


Rule = Callable[["Rules", Draft], bool]
_RULES: list[tuple[Rule, tuple[Level, ...]]] = []


def _at(*levels: Level) -> Callable[[Rule], Rule]:
    """A rule of these levels."""

    def note(rule: Rule) -> Rule:
        _RULES.append((rule, levels))
        return rule

    return note


class Rules:
    """What is not done at a level.

    ``within``: nothing is to be written to a mapping past the end of the file. Without
    passthrough the mapping is of the tree's file, whose page keeps that, so that it shows when
    others make the file longer.
    """

    def __init__(self, level: Level, world: World) -> None:
        self._level = level
        self._world = world
        self._rules = [rule for rule, levels in _RULES if level in levels]
        self.within = level != "passthrough"

    def forbids(self, draft: Draft) -> bool:
        """Whether a call is not to be made."""
        return any(rule(self, draft) for rule in self._rules)

    # -- at every level

    @_at(*LEVELS)
    def offset_in_a_directory(self, draft: Draft) -> bool:
        """Offsets in directories mean something to their filesystem only."""
        name, *arguments = draft.call
        if name not in _AT_A_POSITION or (name == "lock" and arguments[3] == os.SEEK_SET):
            return False
        both = (draft.opened, draft.other)
        return any(opened is not None and opened.kind == stat.S_IFDIR for opened in both)

    @_at(*LEVELS)
    def transfer_within_a_file(self, draft: Draft) -> bool:
        """What is spliced is not copied: a change on the way may show or not. And of no bytes at
        all only the time of access would tell."""
        if draft.call[0] not in ("sendfile", "splice"):
            return False
        if draft.call[-1] == 0:
            return True
        assert draft.opened is not None
        assert draft.other is not None
        return draft.opened.inode == draft.other.inode

    @_at(*LEVELS)
    def removed_file_held_by_path_only(self, draft: Draft) -> bool:
        opened = draft.opened
        if opened is None or not opened.only_path or draft.call[0] in ("close", "dup", "give"):
            return False
        node = self._world.nodes.get(opened.path)
        return node is None or node.inode != opened.inode

    @_at(*LEVELS)
    def offset_past_the_largest_file(self, draft: Draft) -> bool:
        """The kernel knows the backing filesystem's only where it reads and writes there."""
        name, *arguments = draft.call
        if name not in ("lseek", *_TRANSFERS):
            return False
        return any(isinstance(value, int) and value > _LARGEST >> 1 for value in arguments)

    @_at(*LEVELS)
    def allocation_that_moves_data(self, draft: Draft) -> bool:
        """The kernel itself refuses what is not one of these to FUSE."""
        if draft.call[0] != "fallocate":
            return False
        return draft.call[2] not in (0, _KEEP, _KEEP | _PUNCH, _ZERO, _KEEP | _ZERO)

    @_at(*LEVELS)
    def refused_write_with_privileges(self, draft: Draft) -> bool:
        """The kernel takes set-user-ID and set-group-ID bits and file capabilities away before it
        asks."""
        if draft.call[0] not in ("fallocate", "pwrite", "pwritev2", "truncate"):
            return False
        if max(value for value in draft.call[2:5] if isinstance(value, int)) <= _LARGEST >> 1:
            return False
        if self._level != "passthrough" and self._is_direct(draft):
            return True  # after a direct write that failed it cuts the file to its size
        return bool(self._mode(draft) & _PRIVILEGES) or self._inode(draft) in self._world.capable

    @_at(*LEVELS)
    def write_as_root_with_capabilities(self, draft: Draft) -> bool:
        """That the kernel takes file capabilities away looks as if a change of owner did."""
        if draft.user != ROOT or not self._writes(draft):
            return False
        return self._inode(draft) in self._world.capable and bool(self._mode(draft) & _PRIVILEGES)

    @_at(*LEVELS)
    def change_of_project(self, draft: Draft) -> bool:
        sets = draft.call[0] == "ioctl" and draft.call[2] == FS_IOC_FSSETXATTR
        return sets and bool(draft.call[3][1])

    @_at("passthrough", "tap")
    def record_lock_on_an_immutable_file(self, draft: Draft) -> bool:
        """The daemon cannot open it for writing any more."""
        return draft.call[0] == "lock" and self._inode(draft) in self._world.flagged

    @_at(*LEVELS)
    def check_of_what_is_immutable(self, draft: Draft) -> bool:
        """The kernel does not know that it is when it is only asked, maps an open file,
        writes to the mapping, or nothing to the file."""
        name, *arguments = draft.call
        if self._inode(draft) not in self._world.flagged:
            return False
        if name in ("write", "pwrite", "writev", "pwritev2", *_TRANSFERS):
            lengths = arguments[-1] if name == "writev" else arguments
            return 0 in lengths if name != "writev" else sum(lengths) == 0
        return name in ("access", "mmap", "poke")

    @_at(*LEVELS)
    def append_flag_of_an_append_only_file(self, draft: Draft) -> bool:
        """The kernel does not know that it is one when fcntl(2) changes O_APPEND."""
        return draft.call[0] == "setfl" and self._inode(draft) in self._world.flagged

    @_at(*LEVELS)
    def append_not_this_time(self, draft: Draft) -> bool:
        """Of a file opened with O_APPEND the kernel does not pass on RWF_NOAPPEND."""
        opened = draft.opened
        if draft.call[0] != "pwritev2" or opened is None:
            return False
        appends = (opened.flags | opened.first_flags) & os.O_APPEND
        return bool(appends and draft.call[-1] & _RWF_NOAPPEND)

    @_at(*LEVELS)
    def change_of_owner_to_what_it_is(self, draft: Draft) -> bool:
        """It looks like a first write, which may take set-user-ID and set-group-ID bits away."""
        if draft.call[0] != "chown" or draft.call[2:4] != (-1, -1) or draft.user == ROOT:
            return False
        inode = self._inode(draft)
        privileged = self._mode(draft) & _PRIVILEGES
        return bool(privileged) and any(opened.writes for opened in self._world.opened(inode))

    @_at(*LEVELS)
    def uncached_write(self, draft: Draft) -> bool:
        """The kernel refuses RWF_DONTCACHE to FUSE."""
        return draft.call[0] == "pwritev2" and bool(draft.call[-1] & _RWF_DONTCACHE)

    @_at(*LEVELS)
    def write_to_a_file_with_setgid_and_no_execution(self, draft: Draft) -> bool:
        """It clears the bit if a member of the group does it, and does not if the group is root's
        and somebody else does it."""
        if draft.user == ROOT or not self._writes(draft):
            return False
        inode = self._inode(draft)
        group = self._world.groups.get(inode, 0)
        if group and not self._world.is_member(draft.user, group):
            return False
        mode = self._mode(draft)
        return mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID

    # -- with passthrough

    @_at("passthrough", "plain")
    def append_taken_away(self, draft: Draft) -> bool:
        """The kernel opens the backing file with the flags of the opener."""
        opened = draft.opened
        if opened is None or not opened.first_flags & os.O_APPEND:
            return False
        return draft.call[0] == "setfl" and not draft.call[2] & os.O_APPEND

    @_at("passthrough")
    def flags_set_or_taken_away(self, draft: Draft) -> bool:
        """As with O_APPEND."""
        if draft.call[0] != "setfl" or draft.opened is None:
            return False
        return bool((draft.opened.first_flags ^ draft.call[2]) & (os.O_DIRECT | os.O_NOATIME))

    @_at(*LEVELS)
    def direct_without_alignment(self, draft: Draft) -> bool:
        """What the daemon reads and writes needs none: all of it, or with passthrough what had
        set-user-ID or set-group-ID bits when it was opened."""
        served = self._level != "passthrough" or any(
            opened is not None and opened.mode & _PRIVILEGES
            for opened in (draft.opened, draft.other)
        )
        return served and self._is_direct(draft) and not self._is_aligned(draft)

    @_at("passthrough")
    def reading_ahead(self, draft: Draft) -> bool:
        """The daemon reads it, into a cache that nobody uses."""
        name, *arguments = draft.call
        return name == "readahead" or bool(name == "fadvise" and arguments[3] == _WILLNEED)

    @_at("passthrough")
    def copy_without_alignment(self, draft: Draft) -> bool:
        """The daemon copies, and does without O_DIRECT."""
        return draft.call[0] == "copy_file_range" and self._is_direct(draft)

    @_at("passthrough")
    def write_as_root_to_what_got_privileges(self, draft: Draft) -> bool:
        """The kernel writes as nobody, which takes set-user-ID and set-group-ID bits away."""
        opened = draft.opened
        if draft.user != ROOT or opened is None or draft.call[0] not in _PASSED_THROUGH:
            return False
        got = self._world.modes.get(opened.inode, 0) & ~opened.mode
        return bool(got & _PRIVILEGES)

    @_at("passthrough")
    def close_of_what_is_mapped_and_locked(self, draft: Draft) -> bool:
        """A mapping is of the backing file, and does not keep the open file and so its locks."""
        opened = draft.opened
        if draft.call[0] != "close" or opened is None or not opened.locked:
            return False
        mappings = self._world.people[draft.user].mappings.values()
        return any(mapping.opened is opened for mapping in mappings)

    # -- without passthrough

    @_at("tap", "plain")
    def mapping_of_a_file_with_privileges(self, draft: Draft) -> bool:
        """Pages that are written back take set-user-ID and set-group-ID bits away, and file
        capabilities."""
        name, *arguments = draft.call
        inode = self._inode(draft)
        if name == "poke":
            return bool(self._mode(draft) & _PRIVILEGES) or inode in self._world.capable
        if name in ("chmod", "fchmodat2"):
            given = bool(arguments[1] & _PRIVILEGES)
        else:
            given = name == "setxattr" and arguments[1] == b"security.capability"
        return given and self._is_mapped(inode)

    @_at("tap", "plain")
    def flag_of_a_mapped_file(self, draft: Draft) -> bool:
        """What is in a page of the mapping can then not be written back."""
        if draft.call[0] != "ioctl" or not draft.call[3]:
            return False
        return self._is_mapped(self._inode(draft))

    @_at("tap")
    def hole_while_open_for_both(self, draft: Draft) -> bool:
        """There may be a mapping then, of which the backing file does not know."""
        if draft.call[0] != "lseek" or draft.call[-1] not in (os.SEEK_DATA, os.SEEK_HOLE):
            return False
        found = self._world.opened(self._inode(draft))
        return any(opened.reads and opened.writes for opened in found)

    @_at("tap")
    def hole_where_space_is_reserved(self, draft: Draft) -> bool:
        """It is data once it was read, and here whole pages are, and ahead."""
        if draft.call[0] != "lseek" or draft.call[-1] not in (os.SEEK_DATA, os.SEEK_HOLE):
            return False
        return self._inode(draft) in self._world.reserved

    @_at("passthrough", "tap")
    def close_that_drops_locks(self, draft: Draft) -> bool:
        """The kernel does not tell of it, of files opened before the first lock."""
        opened = draft.opened
        if draft.call[0] != "close" or opened is None:
            return False
        early = self._world.early.get(opened.inode, [])
        through = self._world.people[draft.user].locked.get(opened.inode, [])
        return opened in early and any(other in early for other in through)

    # -- at the plain level

    @_at("plain")
    def what_is_not_passed_on(self, draft: Draft) -> bool:
        """pyfuse3 has no such requests."""
        name, *arguments = draft.call
        if name == "open":
            return _is_unnamed(arguments[2])
        if name == "lseek":
            return arguments[2] in (os.SEEK_DATA, os.SEEK_HOLE)
        if name == "statx":
            return bool(arguments[2] & STATX_BTIME)
        return name == "fallocate" or (name == "ioctl" and arguments[1] not in (FIONREAD, TCGETS))

    @_at("plain")
    def attribute_to_be_there_and_not(self, draft: Draft) -> bool:
        """pyfuse3 heeds one of the two flags."""
        both = os.XATTR_CREATE | os.XATTR_REPLACE
        return draft.call[0] == "setxattr" and bool(draft.call[4] == both)

    @_at("plain")
    def write_as_root_to_what_has_privileges(self, draft: Draft) -> bool:
        """It takes set-user-ID and set-group-ID bits away, as it would for anybody."""
        if draft.user != ROOT or not self._writes(draft):
            return False
        return bool(self._mode(draft) & _PRIVILEGES)

    # -- what a draft is about

    def _is_direct(self, draft: Draft) -> bool:
        both = (draft.opened, draft.other)
        return any(opened is not None and opened.flags & os.O_DIRECT for opened in both)

    def _is_aligned(self, draft: Draft) -> bool:
        """Whether a call is in whole blocks, as far as it says so itself."""
        name, *arguments = draft.call
        if name in ("read", "readv", "write", "writev", *_TRANSFERS):
            return False  # wherever the file's position is
        if name not in ("pread", "preadv2", "pwrite", "pwritev2"):
            return True
        assert draft.opened is not None
        if name in ("pwrite", "pwritev2") and draft.opened.flags & os.O_APPEND:
            return False
        if name == "pwritev2" and arguments[-1] & _RWF_APPEND:
            return False
        first = 1 if name in ("pread", "preadv2") else 2
        return all(value >= 0 and value % 4096 == 0 for value in arguments[first : first + 2])

    def _writes(self, draft: Draft) -> bool:
        name = draft.call[0]
        if name == "open":
            return bool(draft.call[3] & os.O_TRUNC)
        return name in _WRITES or name in _TRANSFERS

    def _mode(self, draft: Draft) -> int:
        """The mode of the file; all bits where it is not known."""
        inode = self._inode(draft)
        if not inode and draft.path is not None and draft.path not in self._world.nodes:
            return 0
        return self._world.modes.get(inode, 0o7777)

    def _is_mapped(self, inode: int) -> bool:
        people = self._world.people
        mappings = (mapping for person in people for mapping in person.mappings.values())
        return any(mapping.opened.inode == inode for mapping in mappings)

    def _inode(self, draft: Draft) -> int:
        if draft.opened is not None:
            return draft.opened.inode
        node = self._world.nodes.get(self._world.resolve(draft.path or b""))
        return 0 if node is None else node.inode


def _is_unnamed(flags: int) -> bool:
    return flags & os.O_TMPFILE == os.O_TMPFILE
