"""Pipes and sockets that live in the tree, and polling."""

from __future__ import annotations

import os
import select
import socket

import pytest

from tests.children import Child
from tests.mount.comparing import Pair

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
