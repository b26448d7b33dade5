"""Bytes that move within the kernel: sendfile(2), splice(2) and copy_file_range(2)."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.mount.comparing import Pair
from tests.mount.test_reading_and_writing import content

pytestmark = pytest.mark.usefixtures("nothing_is_kept")


def test_bytes_move_between_the_tree_and_elsewhere_in_the_kernel(pair: Pair) -> None:
    """sendfile(2), splice(2) and copy_file_range(2), in the tree, into it and out of it."""
    data = content(3_000_001)
    outside = pair.native / "outside"
    outside.write_bytes(data)
    inside = pair.mounted / "inside"

    def send(reader: int, writer: int) -> None:
        done = 0
        while count := os.sendfile(writer, reader, done, len(data) - done):
            done += count

    def splice(reader: int, writer: int) -> None:
        out, into = os.pipe()
        while moved := os.splice(reader, into, 1 << 16):
            while moved:
                moved -= os.splice(out, writer, moved)
        os.close(out)
        os.close(into)

    def copy(reader: int, writer: int) -> None:
        while os.copy_file_range(reader, writer, len(data)):
            pass

    for move in (send, splice, copy):
        routes = [(outside, inside), (inside, pair.native / "back"), (inside, pair.mounted / "to")]
        for source, target in routes:
            if move is copy and pair.native in (source.parent, target.parent):
                continue  # EXDEV between filesystems of different types, by the manual page
            shutil.copyfile(outside, source) if source == inside else None
            with source.open("rb") as reader, target.open("wb") as writer:
                move(reader.fileno(), writer.fileno())
            assert target.read_bytes() == data, (move, source, target)
        assert (pair.data / "inside").read_bytes() == data
        assert (pair.data / "to").read_bytes() == data


def test_sending_to_a_socket(pair: Pair) -> None:
    """As a web server does, with the file changing in place meanwhile."""
    path = pair.mounted / "f"
    path.write_bytes(content(500_000))
    out, into = os.pipe()
    with path.open("rb") as file, path.open("r+b", buffering=0) as changing:
        assert os.sendfile(into, file.fileno(), 0, 4096) == 4096
        changing.write(b"changed")
        assert os.sendfile(into, file.fileno(), 0, 4096) == 4096
        found = os.read(out, 8192)
    os.close(out)
    os.close(into)
    assert found[4096:4103] == b"changed"
    assert found[4103:] == content(500_000)[7:4096]
