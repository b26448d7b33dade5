"""Files of every kind."""

from __future__ import annotations

import os
import stat
from pathlib import Path

KINDS = ["file", "directory", "symlink", "fifo", "device"]


def make(path: Path, kind: str) -> Path:
    """Make a file of one of KINDS at ``path``."""
    if kind == "file":
        path.write_bytes(b"content")
    elif kind == "directory":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return path


def make_open_to_all(path: Path, kind: str) -> Path:
    """Make a file of one of KINDS, or a sticky directory, with all permissions for everybody."""
    make(path, "directory" if kind == "sticky directory" else kind)
    if kind != "symlink":
        path.chmod({"directory": 0o777, "sticky directory": 0o1777}.get(kind, 0o666))
    return path
