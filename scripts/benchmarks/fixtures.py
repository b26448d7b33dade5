"""What the workloads work on: the same bytes and names on every machine."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

_EPOCH = 1_600_000_000
_PER_DIRECTORY = 50
_COMMITS = 100


def small_files(count: int) -> Iterator[tuple[str, bytes]]:
    """``count`` files as (path, content): 100 bytes to 8 KiB each, 50 to a directory."""
    chance = random.Random(count)
    for i in range(count):
        content = chance.randbytes(chance.randint(100, 8192))
        yield f"d{i // _PER_DIRECTORY:03}/f{i:05}", content


def write_tar(path: Path, count: int) -> None:
    """A tar of ``count`` small files and their directories."""
    made: set[str] = set()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in small_files(count):
            directory = name.split("/")[0]
            if directory not in made:
                made.add(directory)
                tar.addfile(_member(directory, tarfile.DIRTYPE, 0o755, 0))
            member = _member(name, tarfile.REGTYPE, 0o644, len(content))
            tar.addfile(member, io.BytesIO(content))


def _member(name: str, kind: bytes, mode: int, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.size, member.mtime = kind, mode, size, _EPOCH
    member.uid, member.gid = os.geteuid(), os.getegid()
    return member


def git_environment(home: Path) -> dict[str, str]:
    """An environment in which git reads no configuration but its own defaults."""
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(home)}
    return {**os.environ, **quiet}


def write_repository(path: Path, files: int) -> None:
    """A bare repository whose last commit holds ``files`` files, added over 100 commits."""
    env = git_environment(path.parent)
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", path], env=env, check=True)
    stream = io.BytesIO()
    pending = list(small_files(files))
    step = -(-files // _COMMITS)
    for start in range(0, files, step):
        when = _EPOCH + start
        stream.write(f"commit refs/heads/main\ncommitter bench <bench> {when} +0000\n".encode())
        stream.write(b"data 4\nmore\n")
        for name, content in pending[start : start + step]:
            stream.write(f"M 100644 inline {name}\ndata {len(content)}\n".encode())
            stream.write(content + b"\n")
    fast_import = ["git", "-C", str(path), "fast-import", "--quiet"]
    subprocess.run(fast_import, input=stream.getvalue(), env=env, check=True)


def write_file(path: Path, size: int) -> None:
    """A file of ``size`` bytes without holes, left in the page cache."""
    block = random.Random(size).randbytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(size >> 20):
            file.write(block)
