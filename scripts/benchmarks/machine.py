"""The machine and the command lines, so that figures can be told apart later."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.filesystems import REPOSITORY, Caching, FileSystem, Site


def describe(place: Path, chosen: set[str]) -> dict[str, Any]:
    """Kernel, processor and backing filesystem of ``place``, versions of what is compared."""
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = {
        "bindfs": ["bindfs", "--version"],
        "mergerfs": ["mergerfs", "-V"],
        "libfuse": ["pkg-config", "--modversion", "fuse3"],
        "volfs": [sys.executable, "-m", "volfs", "--version"],
        "fio": ["fio", "--version"],
    }
    asked = {name for name in versions if name in chosen or name in ("libfuse", "fio")}
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "model": model[0] if model else platform.machine(),
        "backing": _backing(place),
        "versions": {name: _first_line(versions[name]) for name in sorted(asked)},
    }


def _backing(place: Path) -> str | None:
    """Type and mount options of the filesystem everything works on."""
    command = ["findmnt", "-n", "-o", "FSTYPE,OPTIONS", "-T", str(place)]
    line = _first_line(command)
    return " ".join(line.split()) if line else None


def _first_line(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return next(iter(done.stdout.splitlines()), None)


def command_lines(filesystems: Sequence[FileSystem], site: Site) -> dict[str, dict[str, str]]:
    """Each filesystem's command line by cache timeout, with the run's own paths shortened."""
    short = {
        str(site.tools) + "/": "",
        str(site.data.parent): "DIR",
        str(site.scope): "SCOPE",
        str(site.mountpoint): "MNT",
        sys.executable: "python",
    }
    commands: dict[str, dict[str, str]] = {}
    for fs in filesystems:
        if fs.command is None:
            continue
        lines = {}
        for caching in Caching:
            line = " ".join(fs.command(site, caching))
            for long, brief in short.items():
                line = line.replace(long, brief)
            lines[f"{caching.value} s"] = line
        commands[fs.name] = lines
    return commands
