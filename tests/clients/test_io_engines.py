"""fio's ways to do input and output at once, each verifying what it wrote, and several together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import levels
from tests.clients.programs import require, run
from tests.clients.volumes import VolumeDir

ENGINES = {
    "io_uring": "io_uring --iodepth=16",
    "io_uring with direct I/O and fixed buffers": (
        "io_uring --iodepth=16 --direct=1 --fixedbufs=1 --registerfiles=1"
    ),
    "io_uring polled by the kernel": "io_uring --iodepth=8 --sqthread_poll=1",
    "libaio": "libaio --iodepth=16",
    "libaio with direct I/O": "libaio --iodepth=16 --direct=1",
    "mmap": "mmap",
    "pvsync2": "pvsync2",
    "splice": "splice",
}


def fio(*words: str | Path) -> None:
    """Run fio, which ends with an error when a block is read back that was not written so."""
    # Preallocation is asked for where the daemon is asked, and is no warning elsewhere.
    allocating = "native" if levels.reaches("tap") else "none"
    common = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--bs=4k-64k"]
    common += [f"--fallocate={allocating}", "--minimal"]
    printed = run("fio", *common, *words, timeout=60)
    assert "verify:" not in printed, printed


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_reads_back_what_it_wrote(volume: VolumeDir, engine: str) -> None:
    """In the tree, and once more from the real data path."""
    require("fio")
    words = ["--name=one", "--size=6M", "--rw=randwrite", *f"--ioengine={ENGINES[engine]}".split()]
    if "--fixedbufs=1" not in words:  # fio 3.39 would ask for fsync of a buffer, which is refused
        words.append("--end_fsync=1")
    fio(*words, f"--directory={volume.path}")
    fio(*words, f"--directory={volume.data}", "--verify_only=1")


def test_engines_share_one_file(volume: VolumeDir, tmp_path: Path) -> None:
    """Each in a part of its own, at the same time, and each file open many times over."""
    require("fio")
    # The one that maps comes first: fio maps the file from its begin, wherever its part is.
    engines = [ENGINES["mmap"], *(words for name, words in ENGINES.items() if name != "mmap")]
    jobs = tmp_path / "jobs"
    lines = ["[global]", f"filename={volume.path}/shared", "size=2M", "rw=randrw", "overwrite=1"]
    for number, words in enumerate(engines):
        engine, *options = words.split()
        lines += [f"[job{number}]", f"ioengine={engine}", f"offset={number * 2}M"]
        lines += [option.removeprefix("--") for option in options]
    jobs.write_text("\n".join(lines) + "\n")
    size = 2 * len(engines) << 20
    (volume.path / "shared").write_bytes(os.urandom(size))
    fio(jobs)
    assert (volume.data / "shared").stat().st_size == size
    assert (volume.data / "shared").read_bytes() == (volume.path / "shared").read_bytes()
