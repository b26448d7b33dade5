"""stress-ng's file system stressors, which verify what they do, and fio's verified writes."""

from __future__ import annotations

import os
import re

import pytest

from tests import levels
from tests.clients.programs import require, require_root, run
from tests.clients.volumes import VolumeDir

# Those that belong together run together, so that they also disturb each other. Left out:
# - fiemap and verity are ioctls that never reach a FUSE file system;
# - fpunch and inode-flags take minutes for a few operations;
# - fanotify, bind-mount, binderfs need capabilities or modules that a container host may lack;
# - dirdeep counts the disk's free inodes and does nothing when anybody frees some meanwhile;
# - io is sync(2), which waits for every file system of the machine;
# - eventfd, ioprio, procfs, chdir, splice do not touch the path they are given, or hardly;
#   fstat works on /dev.
# Each does as much as takes a second or two here. The sizes keep the preparations short: by
# default they fill files of many megabytes first.
STRESSORS = {
    "attributes": {
        "access": 150,
        "chmod": 30,
        "chown": 150,
        "touch": 300,
        "utime": 500,
        "xattr": 8,
    },
    "directories": {"dentry": 500, "dir": 200, "dirmany": 500, "getdent": 20000},
    # One operation of link is thousands of hard links; symlink is its twin, and as long.
    "names": {"filename": 8, "link": 1, "mknod": 250, "rename": 400},
    "open-files": {
        "copy-file": 40,
        "dup": 200,
        "fcntl": 1000,
        "handle": 20000,
        "lease": 300,
        "open": 2500,
    },
    "locks": {"flock": 10_000, "locka": 10_000, "lockf": 2_000, "lockofd": 10_000},
    "contents": {
        "aio": 4000,
        "hdd --hdd-bytes 4M --hdd-opts wr-rnd,rd-rnd,fsync,utimes": 1500,
        "iomix --iomix-bytes 1M": 800,
        "readahead --readahead-bytes 4M": 5000,
        "seek --seek-size 2M": 1000,
        "sync-file --sync-file-bytes 1M": 10,
    },
    "mappings": {
        "mmap --mmap-file --mmap-bytes 2M": 1,
        "msync --msync-bytes 1M": 300,
        "revio --revio-bytes 4M": 3000,
        "sendfile": 3000,
    },
    "direct": {"hdd --hdd-bytes 4M --hdd-opts direct,wr-seq,rd-seq": 2000, "aiol": 150},
    "watches": {"dnotify": 100, "inotify": 8},
    "ranges and flags": {
        "fallocate --fallocate-bytes 4M": 5,
        "fsize": 100,
        "chattr": 10,
        "file-ioctl": 500,
    },
}
NAMES_ONLY = ("attributes", "directories", "names", "locks", "watches")
MARKS = {
    **dict.fromkeys(NAMES_ONLY, pytest.mark.no_data),
    "ranges and flags": pytest.mark.needs_tap,
}


def stress(volume: VolumeDir, stressors: dict[str, int], user: int | None = None) -> None:
    """Run stressors side by side, each for its number of operations; nothing may fail."""
    if not levels.reaches("tap"):  # without which an operation takes several times as long
        stressors = {stressor: -(-count // 4) for stressor, count in stressors.items()}
    done = _stress(volume, stressors, user)
    for stressor, operations in stressors.items():
        if (left := operations - done[stressor]) > 0:
            # Version 0.19 ends all of them when one has done its part: the rest is done alone.
            again = _stress(volume, {stressor: left}, user)
            assert again[stressor] >= left, f"{stressor} was not done: {done}, {again}"
    assert os.listdir(volume.data) == [], "stress-ng removes what it made"


def _stress(volume: VolumeDir, stressors: dict[str, int], user: int | None) -> dict[str, int]:
    """Run stressors once; return how many operations each has done."""
    words = ["--verify", "--metrics-brief", "--temp-path", str(volume.path)]
    # Far more than it takes; one that is not done by then fails the test.
    words += ["--timeout", "80s"]
    for stressor, operations in stressors.items():
        name, *options = stressor.split()
        words += [f"--{name}", "1", f"--{name}-ops", str(operations), *options]
    # Its exit code is not 0 when a stressor fails; see the manual page.
    printed = run("stress-ng", *words, cwd=volume.path, user=user, timeout=100)
    # Newer versions end with a count of those they skipped.
    assert not re.search(r"\bfail:|\bskipp(?!ed: 0)|not implemented", printed), printed
    done = {}
    for stressor in stressors:
        found = re.search(rf"\] {stressor.split()[0]} +(\d+) ", printed)
        assert found, printed
        done[stressor] = int(found[1])
    return done


@pytest.mark.parametrize(
    "group", [pytest.param(group, marks=MARKS.get(group, ())) for group in STRESSORS]
)
def test_stressors(volume: VolumeDir, group: str) -> None:
    require("stress-ng")
    require_root()
    stress(volume, STRESSORS[group])


def test_stressors_of_an_unprivileged_user(volume: VolumeDir) -> None:
    require("stress-ng")
    require_root()
    os.chown(volume.path, 1000, 1000)
    stressors = {"access": 100, "chmod": 20, "dir": 100, "open": 1000, "rename": 200, "utime": 200}
    stress(volume, stressors, user=1000)


@pytest.mark.parametrize(
    "engine", ["psync", "mmap", "libaio --direct=1 --iodepth=8", "io_uring --iodepth=8"]
)
def test_fio_reads_back_what_it_wrote(volume: VolumeDir, engine: str) -> None:
    """Random writes of mixed sizes, each block with a checksum that is verified afterwards."""
    require("fio")
    words = ["--name=verify", "--size=8M", "--rw=randwrite"]
    words += ["--bsrange=4k-64k", "--bs_unaligned=0", "--verify=crc32c", "--verify_fatal=1"]
    words += ["--verify_state_save=0"]  # it would go to the working directory
    words += ["--do_verify=1", "--fsync=64", "--end_fsync=1", "--overwrite=0"]
    # Its own preallocation by fallocate is not offered here, and would only be a warning.
    words += ["--fallocate=none", *f"--ioengine={engine}".split()]
    # A block that reads back differently ends fio with an error.
    assert "err= 0" in run("fio", *words, f"--directory={volume.path}")
    # The same file verifies when it is read behind the mount.
    assert "err= 0" in run("fio", *words, f"--directory={volume.data}", "--verify_only=1")
