"""The figures as JSON and as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Results, Walk, mean_ratio
from benchmarks.workloads import Group, Workload

BASE = "native"
OURS = "volfs"
Json = dict[str, Any]


def results_json(results: Results, workloads: Sequence[Workload]) -> list[Json]:
    """One object a workload; times in microseconds per ``unit``."""
    rows = []
    for workload in workloads:
        figures = {}
        base = results[workload.name].get(BASE)
        for fs, series in results[workload.name].items():
            figures[fs] = {
                "median_us": _us(series.median),
                "ratio_to_native": _ratio(series.median, base.median if base else None),
                "daemon_cpu_us": _us(series.daemon_median),
                "rounds_us": [_us(value) for value in series.wall],
                "error": series.error,
            }
        rows.append(
            {
                "name": workload.name,
                "title": workload.title,
                "group": workload.group.value,
                "unit": workload.unit,
                "filesystems": figures,
            }
        )
    return rows


def means_json(results: Results, workloads: Sequence[Workload]) -> Json:
    """Geometric means over each group: of every filesystem to native, of volfs to every peer."""
    names = list(next(iter(results.values()))) if results else []
    means: Json = {}
    for group in Group:
        if any(workload.group is group for workload in workloads):
            to_native = {fs: mean_ratio(results, workloads, group, fs, BASE) for fs in names}
            to_peer = {fs: mean_ratio(results, workloads, group, OURS, fs) for fs in names}
            means[group.value] = {"to_native": to_native, "volfs_to": to_peer}
    return means


def walks_json(walks: Mapping[str, Walk]) -> Json:
    return {
        fs: {
            "entries": walk.entries,
            "us_per_entry": _us(walk.ns_per_entry),
            "bytes_per_inode": walk.bytes_per_entry and round(walk.bytes_per_entry),
            "descriptors": walk.descriptors,
            "stats": walk.stats,
            "error": walk.error,
        }
        for fs, walk in walks.items()
    }


def _us(ns: float | None) -> float | None:
    return None if ns is None else round(ns / 1000, 3)


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else float(f"{value / base:.4g}")


def show(report: Json, console: Console) -> None:
    """Print everything in ``report`` that a person wants to know."""
    for run in report["runs"]:
        _show_run(run, console)
    if report.get("walk"):
        _show_walk(report["walk"], console)
    errors = [
        (row["title"], fs, figure["error"])
        for run in report["runs"]
        for row in run["workloads"]
        for fs, figure in row["filesystems"].items()
        if figure["error"]
    ]
    errors += [("walk", fs, walk["error"]) for fs, walk in report["walk"].items() if walk["error"]]
    for title, fs, error in errors:
        console.print(f"{fs}, {title}: {error}", markup=False, highlight=False)


def _show_run(run: Json, console: Console) -> None:
    if not run["workloads"]:
        return
    names = list(run["workloads"][0]["filesystems"])
    console.print(
        f"Times native, lower is better; client on processor {run['client_cpu']}, "
        f"daemon on {run['daemon_cpu']}",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("native", justify="right", no_wrap=True)
    peers = [name for name in names if name != BASE]
    for name in peers:
        table.add_column(name, justify="right", no_wrap=True)
    group = None
    for row in run["workloads"]:
        if row["group"] != group:
            if group is not None:
                _add_mean(table, run, group, peers)
            group = row["group"]
            table.add_row(f"[bold]{group}[/bold]")
        figures = row["filesystems"]
        cells = [multiple(figures[name]["ratio_to_native"]) for name in peers]
        table.add_row(row["title"], duration(figures[BASE]["median_us"], row["unit"]), *cells)
    if group is not None:
        _add_mean(table, run, group, peers)
    console.print(table)
    for heading, mean in run["means"].items():
        against = ", ".join(
            f"{value:.2f} × {fs}"
            for fs, value in mean["volfs_to"].items()
            if value is not None and fs not in (OURS, BASE)
        )
        if against:
            console.print(f"{heading}: volfs takes {against}", highlight=False)


def _add_mean(table: Table, run: Json, group: str, peers: Sequence[str]) -> None:
    mean = run["means"][group]["to_native"]
    cells = [f"[bold]{multiple(mean.get(name))}[/bold]" for name in peers]
    table.add_row("[bold]geometric mean[/bold]", "", *cells, end_section=True)


def _show_walk(walk: Json, console: Console) -> None:
    entries = max(figures["entries"] for figures in walk.values())
    console.print(f"Walk of {entries:,} entries with stat", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("µs per entry", "memory per inode", "open descriptors"):
        table.add_column(heading, justify="right")
    for fs, figures in walk.items():
        time, memory, descriptors = (
            figures[key] for key in ("us_per_entry", "bytes_per_inode", "descriptors")
        )
        table.add_row(
            fs,
            "–" if time is None else f"{time:.1f}",
            "–" if memory is None else f"{memory:,} B",
            "–" if descriptors is None else f"{descriptors:,}",
        )
    console.print(table)


def multiple(value: float | None) -> str:
    """A ratio with three significant digits, or a dash."""
    if value is None:
        return "–"
    digits = max(0, 2 - math.floor(math.log10(value))) if value < 100 else 0
    return f"{value:.{min(digits, 2)}f}"


def duration(us: float | None, unit: str) -> str:
    """A time in fitting units: "0.52 µs", "41 ms"."""
    if us is None:
        return "–"
    if unit == "run":
        return f"{us / 1000:.0f} ms"
    return f"{us:.2f} µs" if us < 10 else f"{us:.0f} µs"
