"""Pipes and sockets that live in the tree, and polling."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import pytest

from tests.children import Child
from tests.conftest import Mounted, MountFactory
from tests.mount.comparing import Pair, outcome

pytestmark = pytest.mark.no_data


def test_poll_finds_files_always_ready_and_pipes_work(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.touch()
    with path.open("r+b") as file:
        poll = select.poll()
        poll.register(file, select.POLLIN | select.POLLOUT)
        assert poll.poll(0) == [(file.fileno(), select.POLLIN | select.POLLOUT)]
    os.mkfifo(pair.mounted / "fifo", 0o666)

    def write() -> None:
        with (pair.mounted / "fifo").open("wb") as pipe:
            pipe.write(b"through")

    with Child(write) as child:
        assert (pair.mounted / "fifo").read_bytes() == b"through"
        child.result()


def test_unix_sockets_connect_through_the_tree(pair: Pair) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(pair.mounted / "s"))
        server.listen()
        client.connect(str(pair.mounted / "s"))
        connection, _ = server.accept()
        client.sendall(b"hello")
        with connection:
            assert connection.recv(10) == b"hello"


KINDS = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}


@pytest.fixture(params=["tree and disk", "disk and tree", "two trees"])
def sides(
    request: pytest.FixtureRequest, shared: Mounted, pair: Pair, mount: MountFactory
) -> tuple[Path, Path]:
    """Two ways to one directory."""
    if request.param == "two trees":
        return pair.mounted, mount(scope=shared.scope).mnt / pair.mounted.name
    ways = pair.mounted, pair.data
    return ways if request.param == "tree and disk" else ways[::-1]


@pytest.mark.parametrize("kind", KINDS)
def test_sockets_connect_on_their_own_side_only(sides: tuple[Path, Path], kind: str) -> None:
    """A known difference: to the kernel a socket is at an inode, and the tree has its own."""
    here, there = (top / "s" for top in sides)
    with socket.socket(socket.AF_UNIX, KINDS[kind]) as server:
        server.bind(str(here))
        if kind == "stream":
            server.listen()
        for place, result in ((here, None), (there, "ECONNREFUSED")):
            with socket.socket(socket.AF_UNIX, KINDS[kind]) as client:
                assert outcome(client.connect, str(place)) == result


def test_fifos_connect_on_their_own_side_only(sides: tuple[Path, Path]) -> None:
    """A known difference, as with sockets."""
    here, there = (top / "fifo" for top in sides)
    os.mkfifo(here)
    reader = os.open(here, os.O_RDONLY | os.O_NONBLOCK)
    assert outcome(os.open, there, os.O_WRONLY | os.O_NONBLOCK) == "ENXIO"
    other = os.open(there, os.O_RDWR)
    os.write(other, b"not seen")
    assert os.read(reader, 10) == b""
    writer = os.open(here, os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"seen")
    assert os.read(reader, 10) == b"seen"
    for fd in (reader, other, writer):
        os.close(fd)
