"""Files mapped into memory: what processes share, and what reaches the disk."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from tests.children import run_as
from tests.mount.comparing import Pair


def test_a_shared_map_is_shared_between_processes(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.write_bytes(bytes(3 * 4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as here:
        here[5000:5005] = b"hello"

        def other() -> bytes:
            with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as there:
                found = there[5000:5005]
                there[4094:4098] = b"back"
                return found

        assert run_as(other, 0) == b"hello"
        assert here[4094:4098] == b"back"
        assert os.pread(file.fileno(), 4, 4094) == b"back"
        os.pwrite(file.fileno(), b"written", 0)
        assert here[:7] == b"written"
        here[100:103] = b"end"
        here.flush()
        assert (pair.data / "f").read_bytes()[:103] == here[:103]
    assert (pair.data / "f").read_bytes()[4094:4098] == b"back"


def test_a_private_map_does_not_reach_the_file(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.write_bytes(b"content")
    path.chmod(0o444)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=3) as private,
    ):
        private[:3] = b"CON"
        assert private[:] == b"CONtent"
    assert path.read_bytes() == b"content"


def test_a_map_of_an_unlinked_file_lives_on(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.write_bytes(b"content" * 2000)
    file = path.open("r+b")
    shared = mmap.mmap(file.fileno(), 0)
    file.close()
    path.unlink()
    assert shared[7000:7007] == b"content"
    shared[0:3] = b"CON"
    shared.flush()
    assert shared[0:7] == b"CONtent"
    shared.close()


def test_mapped_writes_reach_the_file_without_msync(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.write_bytes(bytes(100_000))
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
    for start in range(0, 100_000, 5000):
        shared[start : start + 4] = b"mark"
    shared.close()
    os.sync()
    assert (pair.data / "f").read_bytes() == (b"mark" + bytes(4996)) * 20


def test_a_map_of_a_file_open_for_appending(pair: Pair) -> None:
    """What the kernel writes back goes to its place, not to the end."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(b"a" * 8192)
        fd = os.open(path, os.O_RDWR | os.O_APPEND)
        with mmap.mmap(fd, 0) as shared:
            shared[0:6] = b"mapped"
            shared[5000:5006] = b"mapped"
            shared.flush()
        os.write(fd, b"appended")
        told: list[object] = [os.fstat(fd).st_size]
        os.close(fd)
        return [*told, pair.behind(path).read_bytes()]

    pair.same(operation)
