"""Workloads that wait for the disk: fsync after small writes, and PostgreSQL."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks import data, postgres
from benchmarks.workloads import (
    Group,
    Timing,
    Tools,
    Workload,
    run_client,
)

_CLUSTER = "cluster"


def _fdatasync(tools: Tools, where: Path) -> Timing:
    options = ["--rw=randwrite", "--bs=4096", f"--size={tools.sizes.small_io}"]
    options += [f"--io_size={tools.sizes.syncs * 4096}", "--ioengine=psync", "--fdatasync=1"]
    job = data.fio(tools, where, *options)
    count = int(job["write"]["total_ios"])
    waits = float(job["sync"]["lat_ns"]["mean"]) * int(job["sync"]["total_ios"])
    return Timing(float(job["write"]["lat_ns"]["mean"]) * count + waits, count)


def _new_files(tools: Tools, where: Path) -> Timing:
    return run_client(tools, where, "writesync", tools.sizes.syncs)


def _settled(tools: Tools, directory: Path) -> None:
    """Nothing earlier is left to be written, which the first fsync would have to wait for."""
    subprocess.run(["sync", "-f", directory], check=False)


def _prepare_file(tools: Tools, directory: Path) -> None:
    data.prepare(tools, directory)
    _settled(tools, directory)


def _prepare_owned(tools: Tools, directory: Path) -> None:
    postgres.give(directory)
    _settled(tools, directory)


def _initialise(tools: Tools, where: Path) -> Timing:
    return postgres.initialise(tools, where / _CLUSTER)


def _template(tools: Tools) -> Path:
    """A cluster made once, on the backing filesystem."""
    directory = tools.scratch / "postgres"
    if not directory.exists():
        directory.mkdir()
        postgres.give(directory)
        postgres.initialise(tools, directory / _CLUSTER)
    return directory / _CLUSTER


def _prepare_cluster(tools: Tools, directory: Path) -> None:
    subprocess.run(["cp", "-a", _template(tools), directory / _CLUSTER], check=True)
    _settled(tools, directory)


def _pgbench(name: str, title: str, script: str) -> Workload:
    def run(tools: Tools, where: Path) -> Timing:
        with postgres.server(tools, where / _CLUSTER) as server:
            return server.bench(script, tools.sizes.database_time)

    return Workload(f"postgres/{name}", title, Group.DURABLE, "transaction", _prepare_cluster, run)


WORKLOADS = [
    Workload(
        "sync/fdatasync", "random write, 4 KiB + fdatasync", Group.DURABLE, "I/O",
        _prepare_file, _fdatasync,
    ),
    Workload(
        "sync/new-file", "new file of 4 KiB + fsync", Group.DURABLE, "file", _settled, _new_files
    ),
    Workload(
        "postgres/init", "initdb, pgbench -i", Group.DURABLE, "run", _prepare_owned, _initialise
    ),
    _pgbench("tpcb", "pgbench, default script", "tpcb-like"),
    _pgbench("simple", "pgbench -N", "simple-update"),
    _pgbench("select", "pgbench -S", "select-only"),
]  # fmt: skip
