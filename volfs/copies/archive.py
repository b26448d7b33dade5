"""Volumes as tar archives, made and unpacked by GNU tar.

The format is pax: names and attributes of any length, numeric owners, times to the nanosecond,
holes, hard links, and all extended attributes; ACLs are in it as an attribute, which is exact,
and as text, for programs that know only that. Sockets cannot be in an archive.

GNU tar refuses what would lead out of the directory it unpacks into (absolute names, ``..``,
links), or makes it only when nothing can be written through it any more: see "Security" in its
manual.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Self

from volfs.copies.file import ACL_AGAIN
from volfs.copies.marks import Watch
from volfs.copies.tree import closing
from volfs.errors import ArchiveError
from volfs.linux.durable import DIRECTORY
from volfs.linux.syscalls import open_tree_clone

_ATTRIBUTES = (
    *("--xattrs", "--xattrs-include=*", f"--xattrs-exclude={ACL_AGAIN}*"),
    "--numeric-owner",
)
_PACK = (
    *("--create", "--file=-", "--format=posix", *_ATTRIBUTES, "--acls"),
    *("--sparse", "--hole-detection=seek"),
)
_UNPACK = (
    # --block-number tells on standard output whether there was an end mark.
    *("--extract", "--file=-", "--block-number", *_ATTRIBUTES),
    *("--preserve-permissions", "--delay-directory-restore"),
)
_END_MARK = b"** Block of NULs **"
_DIFFERS = 1
"""What tar ends with when a file changed while it was read."""
_MAGIC = {
    b"\x1f\x8b": ("gzip", "gzip"),
    b"\xfd7zXZ\0": ("xz", "xz-utils"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd"),
    b"BZh": ("bzip2", "bzip2"),
}
"""How compressed files begin, which program reads them, and its Debian package."""
_ACL_AS_TEXT = b"SCHILY.acl."
_ACL_AS_ATTRIBUTE = b"SCHILY.xattr.system.posix_acl_"
_CHUNK = 1 << 20
_HEAD = 1 << 18
"""Bytes of an archive that are looked at before it is unpacked."""
_SAID = 1 << 16
"""Bytes of a program's complaints that are heeded."""
_TOLD = 5
_EMPTY_WORDS = (
    "Exiting with failure status due to previous errors",
    "Error is not recoverable: exiting now",
)


@dataclass(frozen=True, slots=True)
class Packed:
    """How an archive was made.

    ``changed`` is how many files and directories were changed by others while they were read,
    of which ``examples`` names some: 0 when the archive is of one point in time, as that of a
    directory nobody else works in always is. ``complaints`` is what tar said.
    """

    changed: int
    examples: tuple[str, ...]
    complaints: tuple[str, ...]


def pack(
    directory: int,
    out: int,
    *,
    live: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Packed:
    """Write what is in a directory to a descriptor as a tar archive.

    ``live`` says that others may work in it: then it is watched for changes, and what is
    mounted in it does not become part of the archive. ``on_progress`` is told how many bytes
    were written. Raises ArchiveError when the archive is not whole, BrokenPipeError when nobody
    reads it, and the OSErrors of writing.
    """
    if not live:
        return _pack(directory, out, (), on_progress)
    with _uncovered(directory) as bare:
        # Where that cannot be had. Nested btrfs subvolumes are then left out too, which tar tells.
        options = ("--one-file-system",) if bare == directory else ()
        watch = Watch(bare)
        watch.begin()
        packed = _pack(bare, out, options, on_progress)
        changed, examples = watch.end()
        return replace(packed, changed=max(changed, packed.changed), examples=examples)


def _pack(
    directory: int,
    out: int,
    options: Sequence[str],
    on_progress: Callable[[int], None] | None,
) -> Packed:
    with _Program("tar", (*_PACK, *options, "."), directory=directory, output=True) as tar:
        _pump(tar.output, out, b"", on_progress)
        code = tar.end()
        if code not in (0, _DIFFERS):
            raise ArchiveError(f"the archive is not whole: {tar.reason()}")
        return Packed(int(code == _DIFFERS), (), tuple(tar.complaints()))


@contextmanager
def _uncovered(directory: int) -> Iterator[int]:
    """Yield a descriptor of a directory below which nothing is mounted, if that can be had."""
    try:
        with closing(open_tree_clone(directory)) as place:
            fd = os.open(".", DIRECTORY, dir_fd=place)
    except OSError:
        yield directory  # not root, or Linux before 5.2
        return
    with closing(fd):
        yield fd


def unpack(
    source: int,
    directory: int,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[str, ...]:
    """Unpack the archive that a descriptor gives into an empty directory.

    It may be compressed by gzip, xz, zstd or bzip2. An entry ``./`` sets owner and mode of the
    directory itself. Returns what tar complained of. ``on_progress`` is told how many bytes
    were read.

    Raises ArchiveError when the archive cannot be unpacked wholly: it is damaged, cut short or not
    an archive, a program it needs is missing, or something in it may not be made.
    """
    head = _read_up_to(source, _HEAD)
    if not head:
        raise ArchiveError("there is no archive: the input is empty")
    for magic, (name, package) in _MAGIC.items():
        if head.startswith(magic):
            with _Program(name, ("-dc",), package=package, input=True, output=True) as program:
                return _unpack_through(program, source, head, directory, on_progress)
    return _unpack(source, head, directory, on_progress)


def _unpack(
    source: int, head: bytes, directory: int, on_progress: Callable[[int], None] | None
) -> tuple[str, ...]:
    # The text names users; the attribute is exact, but tar takes the text if told to heed it.
    as_text = _ACL_AS_TEXT in head and _ACL_AS_ATTRIBUTE not in head
    options = (*_UNPACK, *(("--acls",) if as_text else ()))
    with _Program("tar", options, directory=directory, input=True, output=True) as tar:
        with suppress(BrokenPipeError):  # it has read enough, or has failed: its code tells
            _pump(source, tar.input, head, on_progress)
        tar.close_input()
        said = _read_up_to(tar.output, _CHUNK)
        if tar.end() != 0:
            raise ArchiveError(f"the archive cannot be unpacked: {tar.reason()}")
        if _END_MARK not in said:
            raise ArchiveError("the archive is cut short: it has no end mark")
        # Its writer must not be killed for what it sends after the end mark.
        _pump(source, None, b"", on_progress)
        return tuple(tar.complaints())


def _unpack_through(
    program: _Program,
    source: int,
    head: bytes,
    directory: int,
    on_progress: Callable[[int], None] | None,
) -> tuple[str, ...]:
    """Unpack the source as a program decompresses it."""
    complaints: tuple[str, ...] = ()
    problem: BaseException | None = None

    def relay() -> None:
        nonlocal complaints, problem
        try:
            complaints = _unpack(
                program.output, _read_up_to(program.output, _HEAD), directory, None
            )
        except BaseException as error:  # noqa: BLE001 - raised by the other thread
            problem = error
            program.kill()  # so that nobody waits for it

    thread = threading.Thread(target=relay, name="volfs-unpack")
    thread.start()
    try:
        with suppress(BrokenPipeError):
            _pump(source, program.input, head, on_progress)
        program.close_input()
        code = program.end()
    finally:
        program.kill()
        thread.join()
    if code > 0:
        raise ArchiveError(f"the archive cannot be unpacked: {program.reason()}")
    if problem is not None:
        raise problem
    return complaints


class _Program:
    """A program run between two pipes; killed when the context is left.

    ``directory`` is where it works. ``input`` and ``output`` say which of the pipes it has.
    Raises ArchiveError, naming the Debian package, when it is missing.
    """

    def __init__(
        self,
        name: str,
        options: Sequence[str],
        *,
        package: str = "tar",
        directory: int | None = None,
        input: bool = False,
        output: bool = False,
    ) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the context
        try:
            self._process = subprocess.Popen(
                [name, *options],
                stdin=subprocess.PIPE if input else subprocess.DEVNULL,
                stdout=subprocess.PIPE if output else subprocess.DEVNULL,
                stderr=self._errors,
                cwd=None if directory is None else f"/proc/self/fd/{directory}",
                # Without TAR_OPTIONS, GZIP and the like.
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                # Ctrl-C is for volfs, which then ends it.
                process_group=0,
            )
        except FileNotFoundError:
            self._errors.close()
            raise ArchiveError(
                f"the program {name} is missing (Debian package {package})"
            ) from None
        except BaseException:
            self._errors.close()
            raise
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # a user may have no more of them
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _CHUNK)

    @property
    def input(self) -> int:
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    @property
    def output(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def close_input(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def end(self) -> int:
        """Wait for its end and return its exit code, negative for a signal."""
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()

    def complaints(self) -> list[str]:
        """Return the first lines of what it said on standard error."""
        self._errors.seek(0)
        lines = self._errors.read(_SAID).decode(errors="replace").splitlines()
        said = [line.removeprefix(f"{self._name}: ").strip() for line in lines]
        return [line for line in said if line and not line.endswith(_EMPTY_WORDS)]

    def reason(self) -> str:
        """Return why it failed, on one line."""
        said = "; ".join(dict.fromkeys(self.complaints()[:_TOLD]))
        return said or f"{self._name} ended with {self.end()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def _pump(
    source: int, to: int | None, first: bytes, on_progress: Callable[[int], None] | None
) -> None:
    """Write ``first`` and all that can be read from one descriptor to another."""
    count, data = 0, first
    while True:
        if to is not None:
            view = memoryview(data)
            while view:
                view = view[os.write(to, view) :]
        count += len(data)
        if on_progress is not None:
            on_progress(count)
        data = os.read(source, _CHUNK)
        if not data:
            return


def _read_up_to(source: int, size: int) -> bytes:
    """Read ``size`` bytes, or fewer where the input ends."""
    parts, missing = [], size
    while missing and (part := os.read(source, missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
