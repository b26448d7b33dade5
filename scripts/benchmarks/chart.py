"""The figures as a picture for the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.filesystems import BenchError
from benchmarks.report import BASE

# Readable on white and on black alike, told apart by shape as well as by colour.
_INK = "#7d8590"
_STYLE = {
    "volfs": ("#1f883d", "o"),
    "bindfs": ("#bf8700", "s"),
    "mergerfs": ("#8250df", "^"),
    "passthrough_ll": ("#0969da", "D"),
}


def draw(run: dict[str, Any], path: Path) -> None:
    """Write an SVG with one line a workload and one mark a filesystem, on a log axis."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchError("a chart needs matplotlib: pip install matplotlib") from None

    # Lines from the top down: a heading before each group, then its workloads.
    lines: list[tuple[str, dict[str, Any] | None]] = []
    group = None
    for row in run["workloads"]:
        if row["group"] != group:
            group = row["group"]
            lines.append((group, None))
        lines.append((row["title"], row["filesystems"]))

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "volfs",
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(8, 1.2 + 0.24 * len(lines)), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for name, (colour, marker) in _STYLE.items():
            points = [
                (figures[name]["ratio_to_native"], y)
                for y, (_, figures) in enumerate(lines)
                if figures and name in figures and figures[name]["ratio_to_native"]
            ]
            if points:
                x, y = zip(*points, strict=True)
                ours = name == "volfs"
                axes.scatter(
                    x, y, s=46 if ours else 30, c=colour, marker=marker, label=name,
                    zorder=4 if ours else 3, linewidths=0,
                )  # fmt: skip
        axes.axvline(1, color=_INK, linewidth=1.2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        axes.grid(axis="both", color=_INK, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_yticks(range(len(lines)), [title for title, _ in lines])
        for label, (_, figures) in zip(axes.get_yticklabels(), lines, strict=True):
            if figures is None:
                label.set_fontweight("bold")
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.tick_params(length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.set_xlabel(f"time as a multiple of {BASE} (log scale; further left is faster)")
        axes.xaxis.label.set_color(_INK)
        figure.legend(loc="outside upper center", ncols=len(_STYLE), frameon=False)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
