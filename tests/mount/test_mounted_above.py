"""What is mounted on a volume: overlays, images in a loop device, read-only binds."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Mounted
from tests.filesystems import bound, ext4, overlay, unmounting
from tests.mount.comparing import Pair, outcome
from tests.mount.open_files import use, wait_until_idle
from tests.mount.test_reading_and_writing import content
from tests.mount.workout import WORKOUT

MIB = 1 << 20


def test_an_overlay_has_its_lower_layer_in_the_tree(
    pair: Pair, workspace: Path, shared: Mounted
) -> None:
    """As of an image kept in a volume: read, run, mapped and copied up."""
    lower, layers = pair.mounted / "lower", workspace / "layers"
    lower.mkdir()
    layers.mkdir()
    (lower / "f").write_bytes(content(20_000))
    shutil.copy(shutil.which("echo") or "/bin/echo", lower / "echo")
    with overlay(workspace / "place", layers, lower=lower) as place:
        path = place / "f"
        done = subprocess.run([place / "echo", "ran"], check=True, stdout=-1)
        assert done.stdout == b"ran\n"
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == content(20_000)
            with path.open("r+b", buffering=0) as writer:
                writer.write(b"upper")
                use(writer.fileno(), b"1")
            assert path.read_bytes()[:5] == b"upper"
            assert mapped[:] == content(20_000), "what is open stays that of the lower layer"
    assert (lower / "f").read_bytes() == content(20_000)
    wait_until_idle(shared)


# overlayfs goes on looking for a name of a file that was removed where the file has others, if its
# upper layer is on FUSE, and says ESTALE (ovl_revalidate_real).
UPPER = [way for way in WORKOUT if way != "several opens"]


@pytest.mark.parametrize("way", UPPER)
def test_an_overlay_has_its_upper_layer_in_the_tree(
    pair: Pair, workspace: Path, shared: Mounted, way: str
) -> None:
    layers, native = pair.mounted / "layers", workspace / "native"
    layers.mkdir()
    native.mkdir()
    with overlay(workspace / "place", layers) as place:
        (place / "top").mkdir()
        Pair(place / "top", pair.data / "layers" / "upper" / "top", native).same(WORKOUT[way])
    wait_until_idle(shared)


def test_an_image_in_a_volume_is_a_loop_device(pair: Pair, shared: Mounted) -> None:
    """Made, filled, unmounted, found whole by e2fsck, and mounted again."""
    with ext4(pair.mounted / "place", size=24 * MIB) as place:
        (place / "f").write_bytes(content(5 * MIB))
        with (place / "g").open("w+b") as file:
            file.truncate(MIB)
            with mmap.mmap(file.fileno(), 0) as mapped:
                mapped[5000:5006] = b"mapped"
        fd = os.open(place, os.O_RDONLY)
        ctypes.CDLL(None).syncfs(fd)
        os.close(fd)
        shutil.copyfile(pair.mounted / "place.image", pair.mounted / "image")
    (pair.mounted / "again").mkdir()
    subprocess.run(
        ["mount", "-o", "loop", pair.mounted / "image", pair.mounted / "again"], check=True
    )
    with unmounting(pair.mounted / "again") as again:
        assert (again / "f").read_bytes() == content(5 * MIB)
        assert (again / "g").read_bytes()[5000:5006] == b"mapped"
    wait_until_idle(shared)


def test_a_volume_is_bound_read_only(pair: Pair, workspace: Path) -> None:
    """As into a container with :ro, beside one who writes to it."""
    (pair.mounted / "f").write_bytes(content(20_000))
    place = workspace / "place"
    place.mkdir()
    with (
        bound(pair.mounted, place, read_only=True),
        (pair.mounted / "f").open("r+b", buffering=0) as writer,
        (place / "f").open("rb") as reader,
        mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            assert outcome(os.open, place / "f", flags) == "EROFS"
        assert outcome((place / "new").touch) == "EROFS"
        writer.write(b"written")
        assert os.pread(reader.fileno(), 7, 0) == mapped[:7] == b"written"
        assert outcome(pair.mounted.rmdir) == "EBUSY"
