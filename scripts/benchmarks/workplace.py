"""Where the benchmark works: a filesystem of its own, gone when it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.filesystems import BenchError, unmount

_IMAGE_SIZE = 8 << 30
_IMAGE_INODES = 2_500_000


@contextmanager
def workplace(parent: Path, *, in_place: bool) -> Iterator[Path]:
    """A directory for one run; everything in and under it is gone afterwards.

    Unless ``in_place``, it is a new ext4 filesystem in an image under ``parent``: a filesystem
    that others use, or one without a journal, gives figures that depend on what was deleted in it
    during the last minutes. SIGTERM ends the run like Ctrl-C. Raises BenchError if there can be
    no image.
    """
    with ExitStack() as stack:
        previous = signal.signal(signal.SIGTERM, _interrupt)
        stack.callback(signal.signal, signal.SIGTERM, previous)
        outer = Path(tempfile.mkdtemp(prefix="volfs-bench-", dir=parent.resolve()))
        stack.callback(shutil.rmtree, outer)
        outer.chmod(0o711)  # a database server is another user's
        place = outer / "fs"
        place.mkdir()
        if not in_place:
            _mount_image(outer / "image", place)
            stack.callback(unmount, place)
        yield place


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _mount_image(image: Path, place: Path) -> None:
    with image.open("wb") as file:
        os.ftruncate(file.fileno(), _IMAGE_SIZE)
    # Everything initialised now, and no commit during the run: nothing works in the background.
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    commands = (
        ["mkfs.ext4", "-q", "-F", "-E", lazy, "-N", str(_IMAGE_INODES), str(image)],
        ["mount", "-o", "loop,commit=3600", str(image), str(place)],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip()
            raise BenchError(f"no ext4 image to work on ({reason}); --in-place does without")
