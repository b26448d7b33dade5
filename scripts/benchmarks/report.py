"""The figures as JSON and as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.comparison import mean_ratio, mean_to_fastest_peer, ratio, to_fastest_peer
from benchmarks.filesystems import NATIVE, PEERS, VOLFS
from benchmarks.measure import Results, Walk
from benchmarks.verdict import SAME_SPEED, requests
from benchmarks.workloads import Workload

Json = dict[str, Any]


def rows_json(results: Results, workloads: Sequence[Workload]) -> list[Json]:
    """One object per workload; times in microseconds per ``unit``, requests per ``unit`` too."""
    rows = []
    for workload in workloads:
        row: Json = {
            "name": workload.name,
            "title": workload.title,
            "group": workload.group.value,
            "unit": workload.unit,
            "filesystems": {
                fs: {
                    "median_us": _us(series.median),
                    "daemon_cpu_us": _us(series.daemon_median),
                    "rounds_us": [_us(value) for value in series.wall],
                    "requests": _rounded(series.requests),
                    "error": series.error,
                }
                for fs, series in results[workload.name].items()
            },
        }
        for fs, figures in row["filesystems"].items():
            figures["ratio_to_native"] = _digits(ratio(row, fs, NATIVE))
            if fs != NATIVE and fs not in PEERS:
                figures["ratio_to_fastest_peer"] = _digits(to_fastest_peer(row, fs))
        rows.append(row)
    return rows


def means_json(rows: Sequence[Json]) -> Json:
    """Geometric means over each group: of every filesystem to native, of volfs to every peer."""
    means: Json = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        of_group = [row for row in rows if row["group"] == group]
        names = list(dict.fromkeys(fs for row in of_group for fs in row["filesystems"]))
        fastest = mean_to_fastest_peer(of_group, VOLFS)
        means[group] = {
            "to_native": {fs: _digits(mean_ratio(of_group, fs, NATIVE)) for fs in names},
            "volfs_to": {fs: _digits(mean_ratio(of_group, VOLFS, fs)) for fs in names},
            "volfs_to_fastest_peer": _digits(fastest[0] if fastest else None),
        }
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


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _rounded(counts: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if counts is None else {name: round(count, 3) for name, count in counts.items()}


def show(report: Json, console: Console) -> None:
    """Print everything in ``report`` that a person wants to know."""
    for run in report["runs"]:
        _show_run(run, console)
    _show_requests(report["runs"], console)
    if report["walk"]:
        _show_walk(report["walk"], console)
    errors: dict[tuple[str, str], str] = {}
    for run in report["runs"]:
        for row in run["workloads"]:
            for fs, figures in row["filesystems"].items():
                errors.setdefault((fs, row["title"]), figures["error"])
    errors |= {(fs, "walk"): walk["error"] for fs, walk in report["walk"].items()}
    for (fs, title), error in errors.items():
        if error:
            brief = " ".join(error.split())[:200]
            console.print(f"{fs}, {title}: {brief}", markup=False, highlight=False)
    for what, reason in report["skipped"].items():
        console.print(f"skipped {what}: {reason}", markup=False, highlight=False)
    for fs, level in report["levels"].items():
        console.print(f"{fs} served at level {level}", highlight=False)
    _show_verdict(report["verdict"], console)


def _show_run(run: Json, console: Console) -> None:
    rows = run["workloads"]
    if not rows:
        return
    names = list(dict.fromkeys(fs for row in rows for fs in row["filesystems"]))
    others = [name for name in names if name != NATIVE]
    console.print(
        f"Times native, lower is better; client on processor {run['client_cpu']}, "
        f"daemon on {run['daemon_cpu']}. Last column: volfs to the fastest peer, ▲ where slower",
        highlight=False,
    )
    table = _table()
    for name in (NATIVE, *others, "to peers"):
        table.add_column(name, justify="right")
    group = rows[0]["group"]
    table.add_row(f"[bold]{group}[/bold]")
    for row in rows:
        if row["group"] != group:
            _add_mean(table, run, group, others)
            group = row["group"]
            table.add_row(f"[bold]{group}[/bold]")
        figures = row["filesystems"]
        cells = [multiple(figures.get(name, {}).get("ratio_to_native")) for name in others]
        base = duration(figures[NATIVE]["median_us"], row["unit"])
        compared = figures.get(VOLFS, {}).get("ratio_to_fastest_peer")
        table.add_row(row["title"], base, *cells, _flagged(compared))
    _add_mean(table, run, group, others)
    console.print(table)


def _add_mean(table: Table, run: Json, group: str, others: Sequence[str]) -> None:
    mean = run["means"][group]
    cells = [f"[bold]{multiple(mean['to_native'].get(name))}[/bold]" for name in others]
    compared = _flagged(mean["volfs_to_fastest_peer"])
    table.add_row("[bold]geometric mean[/bold]", "", *cells, compared, end_section=True)


def _flagged(value: float | None) -> str:
    """A ratio to the fastest peer, marked where it means slower."""
    return multiple(value) + (" ▲" if value is not None and value > SAME_SPEED else "  ")


def _show_requests(runs: Sequence[Json], console: Console) -> None:
    counted: dict[tuple[str, str], str] = {}
    for run in runs:
        for row in run["workloads"]:
            for fs, figures in row["filesystems"].items():
                if figures["requests"] is not None:
                    text = requests(figures["requests"]) or "none"
                    counted.setdefault((row["name"], fs), text)
    if counted:
        table = _table("requests to the daemon", "", "per call, entry, file or whole run")
        for (name, fs), text in counted.items():
            table.add_row(name, fs, text)
        console.print(table)


def _show_verdict(verdict: Sequence[Json], console: Console) -> None:
    table = _table("target, as times", "at most", "is", "met", "where")
    answers = {True: "met", False: "[bold]not met[/bold]", None: "?"}
    for row in verdict:
        value = multiple(row["value"]) if row["value"] else f"{row['value'] or '–'}"
        limit = f"{row['limit']:.2f}"
        table.add_row(row["target"], limit, value, answers[row["met"]], row["detail"])
    console.print(table)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings or ("",):
        table.add_column(heading)
    return table


def _show_walk(walk: Json, console: Console) -> None:
    entries = max(figures["entries"] for figures in walk.values())
    console.print(f"Walk of {entries:,} entries with stat", highlight=False)
    table = _table()
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
