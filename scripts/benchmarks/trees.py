"""Workloads on many small files, most of them by the programs people use."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks import fixtures
from benchmarks.workloads import (
    Group,
    Timing,
    Tools,
    Workload,
    client,
    preparing,
    timed,
)

NEW_FILE = "files/write"
_READ_ALL = ["find", "tree", "-type", "f", "-exec", "cat", "{}", "+"]


def _untar(tools: Tools, where: Path) -> Timing:
    return timed(["tar", "-xf", str(tools.tar)], where)


def _prepare_tree(tools: Tools, directory: Path) -> None:
    tree = directory / "tree"
    tree.mkdir()
    _untar(tools, tree)


def _read_all(tools: Tools, where: Path) -> Timing:
    return timed(["sh", "-c", 'exec "$@" >/dev/null', "sh", *_READ_ALL], where)


def _remove(tools: Tools, where: Path) -> Timing:
    return timed(["rm", "-rf", "tree"], where)


def _clone(tools: Tools, where: Path) -> Timing:
    # --no-local: a local clone would hard-link on the native directory and copy on the others.
    # No fsync: this is about the filesystem, not the disk.
    options = ["-c", "core.fsync=none", "-c", "gc.auto=0"]
    clone = ["git", *options, "clone", "-q", "--no-local", str(tools.repository), "clone"]
    return timed(clone, where, fixtures.git_environment(tools.scratch))


def _prepare_clone(tools: Tools, directory: Path) -> None:
    _clone(tools, directory)
    # Later than all files: git reads again what is as new as its index.
    later = time.time() + 60
    os.utime(directory / "clone" / ".git" / "index", (later, later))


def _status(tools: Tools, where: Path) -> Timing:
    # The clone is not of this mount, and not all filesystems show the same inode numbers; nor may
    # git write a new index.
    env = {**fixtures.git_environment(tools.scratch), "GIT_OPTIONAL_LOCKS": "0"}
    options = ["-c", "core.checkStat=minimal", "-c", "core.trustctime=false"]
    return timed(["git", *options, "status", "--porcelain"], where / "clone", env)


def _of_names(name: str, title: str, operation: str, *before: str) -> Workload:
    return Workload(
        f"files/{name}", title, Group.FILES, "file", preparing(*before), client(operation)
    )


def _nothing(tools: Tools, directory: Path) -> None:
    pass


WORKLOADS = [
    _of_names("write", "open-write-close, new file of 4 KiB", "write"),
    _of_names("read", "open-read-close, 4 KiB", "read", "write"),
    Workload("files/untar", "untar small files", Group.FILES, "run", _nothing, _untar),
    Workload("files/clone", "git clone", Group.FILES, "run", _nothing, _clone),
    Workload(
        "files/status", "git status", Group.FILES, "run", _prepare_clone, _status, fixture="clone"
    ),
    Workload(
        "files/read-all", "read all small files", Group.FILES, "run", _prepare_tree, _read_all,
        fixture="tree",
    ),
    Workload("files/rm", "rm -rf of small files", Group.FILES, "run", _prepare_tree, _remove),
]  # fmt: skip
"""The last five are of whole trees."""
