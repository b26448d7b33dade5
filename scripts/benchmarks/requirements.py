"""What the benchmark needs of the machine, and getting it."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from benchmarks.filesystems import BenchError

_PACKAGES = {
    "bindfs": "bindfs",
    "mergerfs": "mergerfs",
    "fio": "fio",
    "git": "git",
    "gcc": "gcc",
    "pkg-config": "pkg-config",
    "umount": "mount",
    "mkfs.ext4": "e2fsprogs",
    "fusermount3": "fuse3",
}
_EXAMPLES = Path("usr/share/doc/libfuse3-dev/examples")
_SOURCES = ("passthrough_ll.c", "passthrough_helpers.h")


def require(programs: Iterable[str], *, libfuse: bool, install: bool) -> None:
    """Make sure of ``programs`` and, for ``libfuse``, its headers.

    Installs what is missing if ``install``; else raises BenchError with the line that would.
    """
    missing = {_PACKAGES[name] for name in programs if shutil.which(name) is None}
    if not Path("/usr/include/stdio.h").exists():
        missing.add("libc6-dev")
    if libfuse and ("pkg-config" in missing or not _has_libfuse()):
        missing.add("libfuse3-dev")
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *sorted(missing)]
    if not install:
        line = " ".join(command)
        raise BenchError(f"missing here; run this first, or scripts/bench --install:\n    {line}")
    if os.geteuid() != 0:
        command.insert(0, "sudo")
    subprocess.run(command, check=True)


def _has_libfuse() -> bool:
    return subprocess.run(["pkg-config", "--exists", "fuse3"], check=False).returncode == 0


def compile_client(into: Path) -> Path:
    """Compile the client that makes the system calls; returns the program."""
    source = Path(__file__).with_name("client.c")
    return _compile(into / "client", source, [])


def compile_passthrough_ll(into: Path) -> Path:
    """Compile libfuse's example filesystem from Debian's libfuse3-dev; returns the program."""
    examples = Path("/") / _EXAMPLES
    if not _find(examples, _SOURCES[0]):
        # Container images often leave out /usr/share/doc: take the package itself.
        download = ["apt-get", "download", "libfuse3-dev"]
        try:
            subprocess.run(download, cwd=into, check=True, capture_output=True)
            package = next(into.glob("libfuse3-dev*.deb"))
            subprocess.run(["dpkg-deb", "-x", package, into / "package"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BenchError(f"no {examples / _SOURCES[0]}, and {error}") from None
        examples = into / "package" / _EXAMPLES
    for name in _SOURCES:
        found = _find(examples, name)
        if found is None:
            raise BenchError(f"libfuse3-dev has no examples/{name}")
        content = found.read_bytes()
        (into / name).write_bytes(gzip.decompress(content) if found.suffix == ".gz" else content)
    flags = subprocess.run(
        ["pkg-config", "fuse3", "--cflags", "--libs"], check=True, capture_output=True, text=True
    )
    return _compile(into / "passthrough_ll", into / _SOURCES[0], flags.stdout.split())


def _find(directory: Path, name: str) -> Path | None:
    candidates = (directory / name, directory / f"{name}.gz")
    return next((path for path in candidates if path.exists()), None)


def _compile(program: Path, source: Path, flags: list[str]) -> Path:
    command = ["gcc", "-O2", "-o", str(program), str(source), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"cannot compile {source}:\n{done.stderr}")
    return program
