"""scripts/bench: a small run of it, and how it judges figures."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import program
from tests.interpreter import ROOT

BENCH = [sys.executable, str(ROOT / "scripts/bench")]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="not installed: gcc")
def test_a_small_run_has_ratios_and_a_verdict_and_leaves_nothing(tmp_path: Path) -> None:
    figures, work = tmp_path / "figures.json", tmp_path / "work"
    work.mkdir()
    small = ["--quick", "--rounds", "1", "--pin", "split", "--in-place", "--dir", str(work)]
    some = ["--fs", "volfs", "--only", "uncached/stat,cached/list,files/write"]
    result = program(*small, *some, "--json", figures, command=BENCH)
    assert result.code == 0, result.err
    assert list(work.iterdir()) == []
    assert str(work) not in Path("/proc/self/mountinfo").read_text()
    report = json.loads(figures.read_text())
    (run,) = report["runs"]
    assert {row["name"] for row in run["workloads"]} == {
        "uncached/stat",
        "cached/list",
        "files/write",
    }
    for row in run["workloads"]:
        assert row["filesystems"]["volfs"]["error"] is None
        assert row["filesystems"]["volfs"]["ratio_to_native"] > 0
        assert row["title"] in result.out
    verdict = {row["target"]: row for row in report["verdict"]}
    assert verdict["cached: each to native"]["met"] in (True, False)
    assert verdict["data: 0.95 of native speed"]["met"] is None
    shown = program("--show", figures, command=BENCH)
    assert (shown.code, shown.out) == (0, result.out)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("benchmarks.verdict").judge


def _run(pin: str, **groups: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    """A run with one row for each name, of medians by filesystem; None for one that failed."""
    headings = {"data": "Data path", "uncached": "Metadata, uncached", "files": "Files"}
    rows = [
        {
            "name": f"{group}/{name}",
            "title": name,
            "group": headings[group],
            "unit": "call",
            "filesystems": {
                fs: {
                    "median_us": median,
                    "error": None if median else "broken",
                    "requests": {"LOOKUP": 1.01, "CREATE": 1.0, "WRITE": 0.5},
                }
                for fs, median in medians.items()
            },
        }
        for group, rows in groups.items()
        for name, medians in rows.items()
    ]
    return {"pin": pin, "workloads": rows}


def _of(verdicts: list[dict[str, Any]], target: str) -> tuple[float | None, bool | None, str]:
    (found,) = [row for row in verdicts if row["target"].startswith(target)]
    return found["value"], found["met"], found["detail"]


def test_the_worst_row_decides(judge: Any) -> None:
    data: dict[str, dict[str, float | None]] = {
        "read": {"native": 1.0, "volfs": 1.01, "volfs-tap": 5.0, "bindfs": 4.0, "mergerfs": 9.0},
        "write": {"native": 1.0, "volfs": 1.04, "volfs-tap": 6.0, "bindfs": 4.0, "mergerfs": 5.0},
    }
    verdicts = judge([_run("split", data=data)])
    assert _of(verdicts, "data: 0.95") == (1.04, True, "write")
    assert _of(verdicts, "data: never") == (0.26, True, "write")
    assert _of(verdicts, "data, no passthrough") == (1.5, False, "write; 1 of 2 above")


def test_means_are_to_the_peer_with_the_smallest(judge: Any) -> None:
    rows: dict[str, dict[str, float | None]] = {
        "stat": {"native": 1.0, "volfs": 4.0, "bindfs": 2.0, "mergerfs": 8.0},
        "open": {"native": 1.0, "volfs": 4.0, "bindfs": 8.0, "mergerfs": 8.0},
    }
    verdicts = judge([_run("split", uncached=rows), _run("same", uncached=rows)])
    assert _of(verdicts, "uncached, two processors: mean") == (1.0, True, "fastest peer: bindfs")
    assert _of(verdicts, "uncached, one processor: mean") == (1.0, True, "fastest peer: bindfs")
    assert _of(verdicts, "uncached, one processor: each") == (2.0, True, "stat")


def test_a_failed_row_is_not_met_and_a_missing_one_not_known(judge: Any) -> None:
    verdicts = judge([_run("split", data={"read": {"native": 1.0, "volfs": None}})])
    assert _of(verdicts, "data: 0.95") == (None, False, "failed: read")
    assert _of(verdicts, "trees") == (None, None, "not measured")


def test_requests_beyond_the_four_count(judge: Any) -> None:
    verdicts = judge([_run("split", files={"write": {"native": 1.0, "volfs": 2.0}})])
    assert _of(verdicts, "new small file") == (0.5, False, "LOOKUP 1.01, CREATE 1, WRITE 0.50")
