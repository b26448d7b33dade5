"""The figures as a picture, for volfs-internals(7)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.filesystems import NATIVE, TAP, VOLFS, BenchError
from benchmarks.workloads import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Readable on white and on black alike, told apart by shape as well as by colour.
_INK = "#7d8590"
_STYLE = {
    VOLFS: ("#1f883d", "o", True),
    TAP: ("#1f883d", "o", False),
    "bindfs": ("#bf8700", "s", True),
    "mergerfs": ("#8250df", "^", True),
    "passthrough_ll": ("#0969da", "D", True),
}
"""Colour, marker, and whether it is filled."""
_RIGHT = (Group.UNCACHED,)
"""Groups of the right column, with a scale of its own: there every call waits for a daemon."""
_LINE, _HEADING = 0.21, 0.75
"""Inches for one workload, and for a group's heading and axis."""
_Panel = tuple[str, list[dict[str, Any]]]


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Write an SVG: a panel per group, a line per workload, a mark per filesystem; log axes."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchError("a chart needs matplotlib: pip install matplotlib") from None

    panels = _panels(runs)
    left = [panel for group, panel in panels if group not in _RIGHT]
    right = [panel for group, panel in panels if group in _RIGHT]
    columns = [column for column in (left, right) if column]
    height = max(sum(_HEADING + _LINE * len(rows) for _, rows in column) for column in columns)
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "volfs",
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(5.8 * len(columns), height + 0.9), layout="constrained")
        parts = figure.subfigures(1, len(columns), squeeze=False)[0]
        for part, column in zip(parts, columns, strict=True):
            ratios = [len(rows) + 1 for _, rows in column]
            axes = part.subplots(len(column), 1, sharex=True, squeeze=False, height_ratios=ratios)
            for axis, panel in zip(axes[:, 0], column, strict=True):
                _draw_panel(axis, panel)
            low, high = axes[0, 0].get_xlim()  # shared
            axes[0, 0].set_xlim(min(low, 0.8), max(high, 12))
        marks = {
            label: handle
            for part in parts
            for axis in part.axes
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        names = [name for name in _STYLE if name in marks]
        figure.legend(
            [marks[name] for name in names], names,
            loc="outside upper center", ncols=len(names), frameon=False,
        )  # fmt: skip
        figure.supxlabel(
            f"time as a multiple of {NATIVE} (log scale; further left is faster)", color=_INK,
            fontsize=10,
        )  # fmt: skip
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def _panels(runs: list[dict[str, Any]]) -> list[tuple[Group, _Panel]]:
    panels = []
    for run in runs:
        where = "one processor" if run["client_cpu"] == run["daemon_cpu"] else "two processors"
        for group in Group:
            rows = [row for row in run["workloads"] if row["group"] == group.value]
            if rows:
                split = len(runs) > 1 and group is Group.UNCACHED
                title = f"{group.value}, {where}" if split else group.value
                panels.append((group, (title, rows)))
    return panels


def _draw_panel(axes: Axes, panel: _Panel) -> None:
    title, rows = panel
    axes.set_xscale("log")
    for name, (colour, marker, filled) in _STYLE.items():
        points = [
            (ratio, y)
            for y, row in enumerate(rows)
            if (ratio := row["filesystems"].get(name, {}).get("ratio_to_native"))
        ]
        if points:
            x, y = zip(*points, strict=True)
            ours = name == VOLFS
            axes.scatter(
                x, y, s=46 if ours else 30, marker=marker, label=name, zorder=4 if ours else 3,
                facecolors=colour if filled else "none", edgecolors=colour, linewidths=1,
            )  # fmt: skip
    axes.axvline(1, color=_INK, linewidth=1.2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.tick_params(labelbottom=True)
    axes.grid(axis="both", color=_INK, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
