"""Workloads that make one kind of system call over and over."""

from __future__ import annotations

from pathlib import Path

from benchmarks.workloads import Group, Timing, Tools, Workload, client, preparing, run_client

_PASSES = 20


def _uncached(
    name: str, title: str, *before: str, operation: str | None = None, again: bool = False
) -> Workload:
    run = client(operation or name)
    warm_up = run if again else None
    return Workload(
        f"uncached/{name}", title, Group.UNCACHED, "call", preparing(*before), run, warm_up
    )


def _cached(name: str, title: str, operation: str, *before: str) -> Workload:
    run, warm_up = client(operation, _PASSES), client(operation)
    return Workload(f"cached/{name}", title, Group.CACHED, "call", preparing(*before), run, warm_up)


def _listing(group: Group, name: str, title: str, operation: str) -> Workload:
    def prepare(tools: Tools, directory: Path) -> None:
        run_client(tools, directory, "create", tools.sizes.listing)

    def once(tools: Tools, where: Path) -> Timing:
        return run_client(tools, where, operation, 0)

    def repeatedly(tools: Tools, where: Path) -> Timing:
        return run_client(tools, where, operation, 0, passes=3)

    run, warm_up = (repeatedly, once) if group is Group.CACHED else (once, None)
    return Workload(name, title, group, "entry", prepare, run, warm_up, fixture="listing")


WORKLOADS = [
    _uncached("stat", "stat, first time", "create"),
    _uncached("stat-again", "stat, again", "create", operation="stat", again=True),
    _uncached("absent", "stat of an absent name", operation="missing"),
    _uncached("open", "open + close", "create"),
    _uncached("create", "create + close"),
    _uncached("rename", "rename", "create"),
    _uncached("unlink", "unlink", "create"),
    _uncached("link", "link", "create"),
    _uncached("symlink", "symlink"),
    _uncached("readlink", "readlink", "symlink"),
    _uncached("mkdir", "mkdir"),
    _uncached("rmdir", "rmdir", "mkdir"),
    _uncached("chmod", "chmod", "create"),
    _uncached("utime", "utimensat", "create"),
    _uncached("truncate", "truncate", "create"),
    _uncached("setxattr", "setxattr", "create"),
    _uncached("getxattr", "getxattr", "create", "setxattr"),
    _listing(Group.UNCACHED, "uncached/list", "list, per entry", "list"),
    _listing(Group.UNCACHED, "uncached/list-stat", "list + stat, per entry", "liststat"),
    _cached("stat", "stat", "stat", "create"),
    _cached("readlink", "readlink", "readlink", "symlink"),
    _cached("absent", "stat of an absent name", "missing"),
    _listing(Group.CACHED, "cached/list", "list, per entry", "list"),
    _listing(Group.CACHED, "cached/list-stat", "list + stat, per entry", "liststat"),
    _cached("open", "open + close", "open", "create"),
]
