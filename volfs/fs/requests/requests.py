"""Requests: what is done upon each request of the kernel, whoever brought it."""

from __future__ import annotations

from dataclasses import dataclass

from volfs.fs.inodes import HandleTable, InodeTable, Listings
from volfs.fs.locks import LockTable
from volfs.fs.requests.attributes import AttributeRequests
from volfs.fs.requests.directories import DirectoryRequests
from volfs.fs.requests.files import FileRequests
from volfs.fs.requests.names import NameRequests
from volfs.fs.requests.threads import WorkerThreads
from volfs.fs.root import Root


@dataclass(frozen=True, slots=True)
class Requests:
    """All requests on the tree, by what they are about, and the tables they work on.

    Each method finds the inodes, decides on which thread the work is done, and has it done. Quick
    calls on local filesystems run at once, on the event loop; what may block becomes a Later, to
    be awaited. Failures are OSError and VolfsError.
    """

    names: NameRequests
    attributes: AttributeRequests
    files: FileRequests
    directories: DirectoryRequests
    inodes: InodeTable
    handles: HandleTable
    listings: Listings
    locks: LockTable
    root: Root
    threads: WorkerThreads
