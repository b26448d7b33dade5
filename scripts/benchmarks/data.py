"""Workloads on one open file, by fio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import fixtures
from benchmarks.filesystems import BenchError
from benchmarks.workloads import MIB, Group, Timing, Tools, Work, Workload, checked

_NAME = "file"


def prepare(tools: Tools, directory: Path) -> None:
    """Make the file that all of them work on."""
    fixtures.write_file(directory / _NAME, tools.sizes.data)


def fio(tools: Tools, where: Path, *options: str) -> dict[str, Any]:
    """Run one job on the file; returns its part of fio's report."""
    # --invalidate=0: the file stays in the page cache of the backing filesystem.
    command = ["fio", "--name=io", f"--filename={_NAME}", f"--filesize={tools.sizes.data}"]
    command += ["--invalidate=0", "--overwrite=1", "--fallocate=none", "--output-format=json"]
    output = checked([*command, *options], where).stdout
    try:
        job: dict[str, Any] = json.loads(output)["jobs"][0]
    except (ValueError, LookupError):
        raise BenchError(f"fio: {output.strip()[-300:]}") from None
    return job


def _timing(job: dict[str, Any], action: str) -> Timing:
    count = int(job[action]["total_ios"])
    if not count:
        raise BenchError(f"fio: no {action} in the time given")
    return Timing(float(job[action]["lat_ns"]["mean"]) * count, count)


def _size(block: int) -> str:
    return f"{block // MIB} MiB" if block >= MIB else f"{block >> 10} KiB"


def _rw(order: str, action: str) -> str:
    return f"rand{action}" if order == "random" else action


def _steady(order: str, action: str, block: int) -> Workload:
    def run(tools: Tools, where: Path) -> Timing:
        sizes = tools.sizes
        region = sizes.small_io if block < MIB else sizes.data
        options = [f"--rw={_rw(order, action)}", f"--bs={block}", f"--size={region}"]
        # The first part is not counted: after it every page is in whatever cache there is.
        options += ["--ioengine=psync", "--time_based", f"--runtime={sizes.io_time * 1000:.0f}ms"]
        options += [f"--ramp_time={sizes.io_warm_up * 1000:.0f}ms"]
        return _timing(fio(tools, where, *options), action)

    size = _size(block)
    return _workload(f"{order}-{action}-{_short(size)}", f"{order} {action}, {size}", run)


def _once(order: str, action: str, block: int, engine: str, what: str) -> Workload:
    def run(tools: Tools, where: Path) -> Timing:
        amount = tools.sizes.small_io if block < MIB else tools.sizes.data
        options = [f"--rw={_rw(order, action)}", f"--bs={block}", f"--size={tools.sizes.data}"]
        options += [f"--io_size={amount}", f"--ioengine={engine}"]
        return _timing(fio(tools, where, *options), action)

    size, prefix = _size(block), "mmap" if engine == "mmap" else "first"
    name = f"{prefix}-{order}-{action}-{_short(size)}"
    return _workload(name, f"{order} {action}, {size}, {what}", run)


def _short(size: str) -> str:
    return size.replace(" ", "").lower()


def _workload(name: str, title: str, run: Work) -> Workload:
    return Workload(f"data/{name}", title, Group.DATA, "I/O", prepare, run, fixture="data")


_ORDERS = ("sequential", "random")
_ACTIONS = ("read", "write")

WORKLOADS = [
    *(
        _steady(order, action, block)
        for block in (4096, 65536, MIB)
        for order in _ORDERS
        for action in _ACTIONS
    ),
    _once("random", "read", 4096, "psync", "first time"),
    _once("sequential", "read", MIB, "psync", "first time"),
    *(_once(order, action, 4096, "mmap", "mmap") for order in _ORDERS for action in _ACTIONS),
]
