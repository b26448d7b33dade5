"""Locks on files: flock(2) and fcntl(2), set on the backing file too.

So they hold between the tree and processes on the real data path. The kernel leaves locks of this
mount wholly to the daemon, and keeps no table of its own (fuse_file_lock in fs/fuse/file.c).

flock locks belong to an open file and are set on its own descriptor, whose closing drops them.
Record locks belong to an owner, a number that stands for a process's table of descriptors, or
for the open file description where they are F_OFD locks; requests do not say which. Each owner
gets an open file description of the backing file while it has locks there, with open file
description locks on it, which conflict with the locks of all others, of either kind.

When record locks end
---------------------
A process loses its locks on a file as it closes any descriptor of that file. FLUSH tells of
each close, but would be one request more for every file ever opened. So files are opened without
it, until the first lock on them (Inode.wants_flush). Of a handle opened before that, only the last
close is reported (RELEASE). Locks set through it are dropped then, or
when their process ends: a child that inherited the descriptor does not keep them. That is right
through fork (the child is another owner, with no locks), exec (the owner stays), threads (one
owner; the process ends with the last) and descriptors passed to others.

What is left, for handles opened before the first lock on the file: a process that goes on living
keeps its locks although it has closed a duplicate of the descriptor, another descriptor of the file
opened as early, or the one it locked through while a child still has that. Where the daemon may not
trace the process, or does not see its pid namespace, its end is not seen either. And the last close
is reported a moment after close(2) returns: within the tree later requests
come after it, but a process on the real path can find the lock still held for that moment.
"""

from volfs.fs.locks.held import END, Lock
from volfs.fs.locks.table import LockTable

__all__ = ["END", "Lock", "LockTable"]
