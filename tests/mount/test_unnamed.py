"""Files without a name (O_TMPFILE) through the tree, and how they get one."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.acls import DEFAULT, acl
from tests.children import OTHER, USER, run_as
from tests.conftest import Mounted, wait_for
from tests.mount.comparing import Pair, outcome

pytestmark = pytest.mark.needs_tap

CONTENT = b"content" * 10_000


@contextmanager
def unnamed(top: Path, flags: int = os.O_RDWR, mode: int = 0o666) -> Iterator[int]:
    """A file without a name, open."""
    fd = os.open(top, flags | os.O_TMPFILE, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def name_it(fd: int, path: Path) -> None:
    """Give it a name, as open(2) tells to: linkat with AT_SYMLINK_FOLLOW of the link in /proc."""
    descriptors = os.open("/proc/self/fd", os.O_PATH)  # without one Python calls link(2)
    try:
        os.link(str(fd), path, src_dir_fd=descriptors, follow_symlinks=True)
    finally:
        os.close(descriptors)


def owned(status: os.stat_result) -> tuple[str, int, int, int]:
    return oct(status.st_mode), status.st_uid, status.st_gid, status.st_nlink


def test_it_is_a_file_that_is_not_listed(pair: Pair) -> None:
    def run(top: Path) -> object:
        with unnamed(top) as fd:
            os.write(fd, CONTENT)
            seen = os.pread(fd, len(CONTENT), 0) == CONTENT, owned(os.fstat(fd))
            return seen, os.fstat(fd).st_size, os.listdir(top)

    pair.same(run)
    assert os.listdir(pair.data) == []


def test_it_vanishes_when_closed(pair: Pair, shared: Mounted) -> None:
    with unnamed(pair.mounted) as fd:
        os.write(fd, CONTENT)
        number = os.fstat(fd).st_ino
    shared.drop_caches()
    assert os.listdir(pair.data) == os.listdir(pair.mounted) == []
    # The daemon has let go of it: only then its blocks are free.
    wait_for(lambda: not holds(shared, number), "the daemon to close the file")


def holds(tree: Mounted, number: int) -> bool:
    """Whether the daemon has a descriptor of the file with this inode number."""
    for link in Path(f"/proc/{tree.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if link.stat().st_ino == number:
                return True
    return False


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY], ids=["RDWR", "WRONLY"])
def test_it_gets_a_name(pair: Pair, flags: int) -> None:
    def run(top: Path) -> object:
        with unnamed(top, flags) as fd:
            os.write(fd, CONTENT)
            name_it(fd, top / "name")
            os.write(fd, b"more")
            status = os.fstat(fd)
            same = os.path.samestat(status, (top / "name").stat())
            links = status.st_nlink
        return same, links, (top / "name").read_bytes() == CONTENT + b"more", os.listdir(top)

    pair.same(run)
    assert (pair.data / "name").read_bytes() == CONTENT + b"more"


def test_it_gets_several_names_and_loses_them(pair: Pair) -> None:
    def run(top: Path) -> object:
        links = []
        with unnamed(top) as fd:
            for name in ("first", "second"):
                name_it(fd, top / name)
                links.append(os.fstat(fd).st_nlink)
            for name in ("first", "second"):
                (top / name).unlink()
                links.append(os.fstat(fd).st_nlink)
            again = outcome(name_it, fd, top / "third")
        return links, again, os.listdir(top)

    pair.same(run)


def test_the_name_stays_when_the_file_is_closed_and_forgotten(pair: Pair, shared: Mounted) -> None:
    with unnamed(pair.mounted) as fd:
        os.write(fd, CONTENT)
        name_it(fd, pair.mounted / "name")
        number = os.fstat(fd).st_ino
    shared.drop_caches()
    assert (pair.mounted / "name").read_bytes() == CONTENT
    assert (pair.mounted / "name").stat().st_ino == number == (pair.data / "name").stat().st_ino
    with (pair.mounted / "name").open("ab") as file:
        file.write(b"more")
    assert (pair.data / "name").read_bytes() == CONTENT + b"more"


def test_a_name_elsewhere(pair: Pair, shared: Mounted) -> None:
    """Another directory, another volume, and the root, where no files live."""
    (pair.mounted / "below").mkdir()
    (shared.mnt / "elsewhere").mkdir(exist_ok=True)
    with unnamed(pair.mounted) as fd:
        os.write(fd, CONTENT)
        name_it(fd, pair.mounted / "below" / "name")
        name_it(fd, shared.mnt / "elsewhere" / "name")
        with pytest.raises(OSError) as caught:
            name_it(fd, shared.mnt / "name")
        assert caught.value.errno == errno.EXDEV
    assert (shared.data("elsewhere") / "name").read_bytes() == CONTENT
    (shared.mnt / "elsewhere" / "name").unlink()


def test_no_name_is_taken_from_another(pair: Pair) -> None:
    def run(top: Path) -> object:
        (top / "taken").write_bytes(b"here first")
        with unnamed(top) as fd:
            return outcome(name_it, fd, top / "taken"), (top / "taken").read_bytes()

    pair.same(run)


def test_exclusive_means_for_good(pair: Pair) -> None:
    def run(top: Path) -> object:
        with unnamed(top, os.O_RDWR | os.O_EXCL) as fd:
            os.write(fd, CONTENT)
            return outcome(name_it, fd, top / "name"), os.listdir(top), os.fstat(fd).st_nlink

    pair.same(run)


def test_it_is_opened_again(pair: Pair) -> None:
    """Through /proc, as programs do to get one that can only be read."""

    def run(top: Path) -> object:
        with unnamed(top) as fd:
            os.write(fd, CONTENT)
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        try:
            answers = os.pread(again, len(CONTENT), 0) == CONTENT, outcome(os.write, again, b"x")
            name_it(again, top / "name")
        finally:
            os.close(again)
        return answers, (top / "name").read_bytes() == CONTENT

    pair.same(run)


def test_whatever_can_be_done_with_a_file(pair: Pair) -> None:
    def run(top: Path) -> object:
        with unnamed(top, mode=0o640) as fd:
            os.ftruncate(fd, 100_000)
            os.fchmod(fd, 0o4755)
            os.fchown(fd, USER, OTHER)
            os.utime(fd, ns=(10**9, 2 * 10**9))
            os.setxattr(fd, "user.name", b"value")
            os.fsync(fd)
            status = os.fstat(fd)
            return (
                owned(status),
                status.st_size,
                status.st_mtime_ns,
                os.getxattr(fd, "user.name"),
                fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE,
            )

    pair.same(run)


def test_refusals(pair: Pair, shared: Mounted) -> None:
    def run(top: Path) -> object:
        (top / "file").touch()
        return [
            outcome(os.open, top, os.O_TMPFILE | os.O_RDONLY),
            outcome(os.open, top / "file", os.O_TMPFILE | os.O_RDWR),
            outcome(os.open, top / "absent", os.O_TMPFILE | os.O_RDWR),
        ]

    pair.same(run)
    with pytest.raises(OSError) as caught:
        os.open(shared.mnt, os.O_TMPFILE | os.O_RDWR)
    assert caught.value.errno == errno.EPERM


# -- whose it is


@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
@pytest.mark.parametrize("uid", [0, USER])
def test_it_is_the_callers(pair: Pair, uid: int, umask: int) -> None:
    pair.chmod(0o777)

    def run(top: Path) -> object:
        return run_as(maker(top, 0o1676), uid, gid=OTHER, umask=umask)

    pair.same(run)
    status = (pair.data / "name").stat()
    assert (status.st_uid, status.st_gid) == (uid, OTHER)


def maker(top: Path, mode: int) -> Callable[[], tuple[str, int, int, int]]:
    """Makes a file as "name" and tells how it was before and is now."""

    def make() -> tuple[str, int, int, int]:
        with unnamed(top, mode=mode) as fd:
            before = owned(os.fstat(fd))
            name_it(fd, top / "name")
            assert owned(os.fstat(fd))[:3] == before[:3]
            return before

    return make


@pytest.mark.parametrize("mode", [0o666, 0o2777, 0o6755])
@pytest.mark.parametrize("member", [False, True])
def test_a_setgid_directory_gives_its_group(pair: Pair, mode: int, member: bool) -> None:
    pair.chown(0, 4321)
    pair.chmod(0o2777)

    def run(top: Path) -> object:
        return run_as(maker(top, mode), USER, groups=[4321] if member else [])

    pair.same(run)
    status = (pair.data / "name").stat()
    assert status.st_gid == 4321
    assert bool(status.st_mode & stat.S_ISGID) == (member and bool(mode & stat.S_ISGID))


def test_a_default_acl_counts_instead_of_the_umask(pair: Pair) -> None:
    pair.chmod(0o777)
    for top in (pair.native, pair.mounted):
        os.setxattr(top, DEFAULT, acl(7, 6, 4, users={OTHER: 6}, mask=6))

    def run(top: Path) -> object:
        return run_as(maker(top, 0o666), USER, umask=0o077)

    pair.same(run)
    assert oct((pair.data / "name").stat().st_mode) == oct(
        stat.S_IFREG | stat.S_IMODE((pair.native / "name").stat().st_mode)
    )


def test_who_may_not_write_makes_none(pair: Pair) -> None:
    pair.chmod(0o755)
    pair.same(lambda top: run_as(lambda: os.open(top, os.O_TMPFILE | os.O_RDWR)))
