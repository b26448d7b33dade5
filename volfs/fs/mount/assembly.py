"""The tree's parts, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from volfs.fs.agreement import Connection
from volfs.fs.files import Attributes, Names, Opening, Passthrough, Writing
from volfs.fs.inodes import Descriptors, HandleTable, InodeTable, Listings
from volfs.fs.locks import LockTable
from volfs.fs.mount.options import MountOptions
from volfs.fs.requests import Requests, WorkerThreads
from volfs.fs.requests.attributes import AttributeRequests
from volfs.fs.requests.directories import DirectoryRequests
from volfs.fs.requests.files import FileRequests
from volfs.fs.requests.names import NameRequests
from volfs.fs.requests.room import Room
from volfs.fs.root import Root, VolumeAttributes
from volfs.linux.identity import Identity
from volfs.store import VolumeStore


@dataclass(frozen=True, slots=True)
class Parts:
    """All that serves one tree, except what brings the requests."""

    connection: Connection
    requests: Requests
    opening: Opening
    passthrough: Passthrough
    descriptors: Descriptors

    def statistics(self) -> dict[str, object]:
        """Counters for finding leaks: what is known, and what is open."""
        requests = self.requests
        return {
            "inodes": len(requests.inodes),
            "lookups": requests.inodes.lookups,
            "descriptors": len(self.descriptors),
            "open_files": requests.handles.open_files,
            "open_directories": requests.handles.open_directories,
            "backing_ids": self.passthrough.count,
        }

    def close(self) -> None:
        """Close everything that is open. No request may be under way, none may follow."""
        self.connection.close()
        self.requests.locks.close()
        self.requests.handles.close()
        self.requests.inodes.close()
        self.opening.close()
        self.passthrough.close()


def assemble(
    store: VolumeStore,
    scope_fd: int,
    options: MountOptions,
    identity: Identity,
    descriptors: Descriptors,
    *,
    statistics: Callable[[], Mapping[str, object]],
    on_volume_removed: Callable[[], None],
) -> Parts:
    """Put the parts together that serve the tree of ``store``.

    ``scope_fd`` is a descriptor of the scope, which must outlive them. ``statistics`` is what the
    attribute ``volfs.stats`` shows; ``on_volume_removed`` is called on the event loop after a
    volume went to the trash.
    """
    connection = Connection()
    inodes = InodeTable(scope_fd, descriptors, connection)
    handles = HandleTable()
    listings = Listings(options.cache.timeout)
    passthrough = Passthrough(inodes, connection, noatime=options.noatime)
    names = Names(inodes, identity, listings)
    opening = Opening(
        inodes,
        handles,
        identity,
        options.cache,
        passthrough,
        connection,
        noatime=options.noatime,
    )
    writing = Writing(inodes, handles, opening, identity)
    attributes = Attributes(inodes, listings)
    root = Root(
        store,
        inodes,
        handles,
        names,
        mode=options.root_mode,
        owner=options.owner,
        only_empty=options.rmdir == "empty",
    )
    threads = WorkerThreads(identity, connection, descriptors.closing)
    locks = LockTable(opening.open_again, opening.descriptor, handles.flock, threads.run)
    room = Room(descriptors, handles)
    files = FileRequests(
        inodes, handles, opening, writing, locks, identity, threads, connection, room
    )
    requests = Requests(
        names=NameRequests(inodes, root, names, threads, on_volume_removed),
        attributes=AttributeRequests(
            inodes,
            handles,
            root,
            VolumeAttributes(store, inodes, statistics),
            attributes,
            threads,
            connection,
            scope_fd,
        ),
        files=files,
        directories=DirectoryRequests(inodes, handles, root, opening, threads, room),
        inodes=inodes,
        handles=handles,
        listings=listings,
        locks=locks,
        root=root,
        threads=threads,
    )
    return Parts(connection, requests, opening, passthrough, descriptors)
