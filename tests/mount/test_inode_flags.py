"""lsattr(1) and chattr(1) through the tree, and what an ioctl that nobody knows is told."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.children import OTHER, USER, run_as
from tests.conftest import Mounted, MountFactory, mounting, open_workspace
from tests.mount.comparing import Pair, outcome
from tests.mount.conftest import make_pair
from volfs.fs.files import flags

pytestmark = pytest.mark.needs_tap

FS_IOC32_SETFLAGS = 0x40046602
FS_APPEND_FL = 0x20
FS_IMMUTABLE_FL = 0x10
FS_NODUMP_FL = 0x40
FS_NOATIME_FL = 0x80
FS_PROJINHERIT_FL = 0x2000_0000
XFLAG_NODUMP = 0x80
XFLAG_PROJINHERIT = 0x200


@pytest.fixture(scope="module")
def for_long() -> Iterator[Mounted]:
    """A mount that remembers for long."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        yield mount(cache="always")


@pytest.fixture
def remembering(for_long: Mounted) -> Pair:
    return make_pair(for_long)


@pytest.fixture(autouse=True)
def deletable(pair: Pair) -> Iterator[None]:
    """Nothing stays immutable."""
    yield
    for top in (pair.data, pair.native):
        # It fails for what has no flags.
        subprocess.run(["chattr", "-R", "-ia", top], check=False, capture_output=True)


def lsattr(path: Path, *options: str) -> str:
    command = ["lsattr", "-d", *options, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.removesuffix(f" {path}\n")


def chattr(path: Path, *changes: str) -> int:
    """Run chattr(1), which says no more than whether it worked."""
    command = ["chattr", *changes, str(path)]
    return subprocess.run(command, check=False, capture_output=True).returncode


def get(path: Path) -> int:
    """FS_IOC_GETFLAGS, as programs send it."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return int(struct.unpack("I", fcntl.ioctl(fd, flags.FS_IOC_GETFLAGS, bytes(4)))[0])
    finally:
        os.close(fd)


def change(path: Path, value: int) -> None:
    """FS_IOC_SETFLAGS, as programs send it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, flags.FS_IOC_SETFLAGS, struct.pack("I", value))
    finally:
        os.close(fd)


# -- as root


@pytest.mark.parametrize("letter", "iadASc")
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_each_flag_is_set_and_taken_back(pair: Pair, kind: str, letter: str) -> None:
    def run(top: Path) -> object:
        path = top / "it"
        path.mkdir() if kind == "directory" else path.write_bytes(b"content")
        seen: list[object] = [lsattr(path)]
        for sign in "+-":
            seen += [chattr(path, f"{sign}{letter}"), lsattr(path), get(path)]
        return seen

    pair.same(run)


def test_flags_are_the_files_own(pair: Pair) -> None:
    for name in ("file", "other"):
        (pair.mounted / name).write_bytes(b"")
    assert chattr(pair.mounted / "file", "+d") == 0
    assert chattr(pair.data / "other", "+A") == 0
    for name, letter in (("file", "d"), ("other", "A")):
        assert letter in lsattr(pair.mounted / name)
        assert lsattr(pair.mounted / name) == lsattr(pair.data / name)


def test_lsattr_of_a_whole_tree(pair: Pair) -> None:
    def run(top: Path) -> object:
        (top / "below").mkdir()
        (top / "below" / "file").touch()
        (top / "below" / "link").symlink_to("file")
        os.mkfifo(top / "below" / "fifo")
        command = ["lsattr", "-R", "."]
        done = subprocess.run(command, capture_output=True, text=True, cwd=top, check=False)
        return done.returncode, sorted(done.stdout.splitlines())

    pair.same(run)


def test_what_is_immutable_stays_as_it_is(pair: Pair) -> None:
    def run(top: Path) -> object:
        path = top / "file"
        path.write_bytes(b"content")
        assert chattr(path, "+i") == 0
        answers = [
            outcome(os.open, path, os.O_WRONLY),
            outcome(os.open, path, os.O_WRONLY | os.O_APPEND),
            outcome(os.open, path, os.O_RDWR | os.O_TRUNC),
            outcome(os.truncate, path, 0),
            outcome(os.chmod, path, 0o600),
            outcome(os.chown, path, 1, 1),
            outcome(os.utime, path),
            outcome(os.setxattr, path, "user.name", b"value"),
            outcome(os.link, path, top / "link"),
            outcome(os.rename, path, top / "renamed"),
            outcome(os.unlink, path),
        ]
        return answers, path.read_bytes(), chattr(path, "-i"), outcome(os.unlink, path)

    pair.same(run)


def test_nothing_is_made_in_an_immutable_directory(pair: Pair) -> None:
    def run(top: Path) -> object:
        path = top / "directory"
        path.mkdir()
        (path / "file").touch()
        assert chattr(path, "+i") == 0
        return [
            outcome(os.mkdir, path / "new"),
            outcome(os.open, path / "new", os.O_CREAT | os.O_WRONLY),
            outcome(os.symlink, "new", path / "new"),
            outcome(os.unlink, path / "file"),
            outcome(os.rename, path / "file", top / "file"),
            outcome(os.truncate, path / "file", 10),
            sorted(os.listdir(path)),
        ]

    pair.same(run)


def test_what_is_append_only_grows(pair: Pair) -> None:
    def run(top: Path) -> object:
        path = top / "file"
        path.write_bytes(b"content")
        assert chattr(path, "+a") == 0
        answers = [
            outcome(os.open, path, os.O_WRONLY),
            outcome(os.truncate, path, 0),
            outcome(os.unlink, path),
        ]
        with path.open("ab") as file:
            file.write(b", more")
        return answers, path.read_bytes()

    pair.same(run)


def test_an_open_file_stays_writable(pair: Pair) -> None:
    """Immutable is asked for at open(2)."""

    def run(top: Path) -> object:
        path = top / "file"
        with path.open("wb", buffering=0) as file:
            assert chattr(path, "+i") == 0
            return outcome(file.write, b"late"), outcome(os.open, path, os.O_WRONLY)

    pair.same(run)


def test_extended_flags(pair: Pair) -> None:
    """FS_IOC_FSGETXATTR and FSSETXATTR, which hold a project as well: lsattr -p."""

    def run(top: Path) -> object:
        path = top / "file"
        path.touch()
        fd = os.open(path, os.O_RDWR)
        try:
            before = fcntl.ioctl(fd, flags.FS_IOC_FSGETXATTR, bytes(28))
            bits, *rest = struct.unpack("=5I8x", before)
            wanted = struct.pack("=5I8x", bits | XFLAG_NODUMP, *rest)
            fcntl.ioctl(fd, flags.FS_IOC_FSSETXATTR, wanted)
            return before, fcntl.ioctl(fd, flags.FS_IOC_FSGETXATTR, bytes(28)), lsattr(path, "-p")
        finally:
            os.close(fd)

    pair.same(run)
    assert "d" in lsattr(pair.mounted / "file")


# -- as somebody else


def test_a_user_sets_what_is_a_users(pair: Pair) -> None:
    def run(top: Path) -> object:
        own, foreign = top / "own", top / "foreign"
        for path, owner in ((own, USER), (foreign, OTHER)):
            path.touch()
            path.chmod(0o666)
            os.chown(path, owner, owner)
        before = get(own)
        answers = [
            outcome(run_as, as_setter(path, before | wanted))
            for path in (own, foreign)
            for wanted in (
                FS_NODUMP_FL,
                FS_NOATIME_FL,
                FS_IMMUTABLE_FL,
                FS_APPEND_FL,
            )
        ]
        return answers, get(own), get(foreign)

    pair.same(run)
    seen = get(pair.data / "own") | get(pair.data / "foreign")
    assert not seen & (FS_IMMUTABLE_FL | FS_APPEND_FL)


def as_setter(path: Path, value: int) -> Callable[[], None]:
    return lambda: change(path, value)


def test_a_user_takes_nothing_back_that_root_set(pair: Pair) -> None:
    def run(top: Path) -> object:
        path = top / "file"
        path.touch()
        os.chown(path, USER, USER)
        assert chattr(path, "+i") == 0
        return outcome(run_as, as_setter(path, 0)), lsattr(path)

    pair.same(run)
    assert get(pair.data / "file") & FS_IMMUTABLE_FL


def test_a_user_gets_past_no_check_with_other_commands(pair: Pair) -> None:
    """A 64-bit kernel checks the 32-bit command for 32-bit programs only."""
    path = pair.mounted / "file"
    path.touch()
    os.chown(path, USER, USER)

    def send(command: int, value: bytes) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            fcntl.ioctl(fd, command, value)
        finally:
            os.close(fd)

    immutable = struct.pack("I", FS_IMMUTABLE_FL)
    with pytest.raises(OSError) as caught:
        run_as(lambda: send(FS_IOC32_SETFLAGS, immutable))
    assert caught.value.errno == errno.ENOTTY
    for value in (struct.pack("=5I8x", 8, 0, 0, 0, 0), struct.pack("=5I8x", 16, 0, 0, 0, 0)):
        with pytest.raises(OSError) as caught:
            run_as(lambda value=value: send(flags.FS_IOC_FSSETXATTR, value))  # type: ignore[misc]
        assert caught.value.errno == errno.EPERM
    assert not get(pair.data / "file") & (FS_IMMUTABLE_FL | FS_APPEND_FL)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_change_of_flags_is_seen_in_ctime_at_once(remembering: Pair, kind: str) -> None:
    """Also where the kernel keeps attributes for long."""

    def run(top: Path) -> object:
        path = top / "it"
        path.mkdir() if kind == "directory" else path.write_bytes(b"content")
        told = []
        for change in ("+d", "-d"):
            before = path.stat()
            assert chattr(path, change) == 0
            after = path.stat()
            told += [
                after.st_ctime_ns > before.st_ctime_ns,
                after.st_mtime_ns == before.st_mtime_ns,
            ]
            told.append(after.st_ctime_ns == remembering.behind(path).stat().st_ctime_ns)
        return told

    assert remembering.same(run) == [True] * 6


# -- projects


def projects(path: Path) -> list[object]:
    """What comes of changing the project id, and whether it is inherited."""
    told: list[object] = []
    fd = os.open(path, os.O_RDONLY)
    try:
        before = list(struct.unpack("=5I8x", fcntl.ioctl(fd, flags.FS_IOC_FSGETXATTR, bytes(28))))
        for position, value in ((3, 4711), (0, before[0] | XFLAG_PROJINHERIT)):
            fields = [*before]
            fields[position] = value
            wanted = struct.pack("=5I8x", *fields)
            told.append(outcome(fcntl.ioctl, fd, flags.FS_IOC_FSSETXATTR, wanted) == wanted)
        (value,) = struct.unpack("I", fcntl.ioctl(fd, flags.FS_IOC_GETFLAGS, bytes(4)))
        for bits in (value ^ FS_PROJINHERIT_FL, value | FS_NODUMP_FL):
            told.append(outcome(fcntl.ioctl, fd, flags.FS_IOC_SETFLAGS, struct.pack("I", bits)))
        now = struct.unpack("=5I8x", fcntl.ioctl(fd, flags.FS_IOC_FSGETXATTR, bytes(28)))
        told.append((now[0] & XFLAG_PROJINHERIT, now[3]))
    finally:
        os.close(fd)
    return told


@pytest.mark.parametrize("uid", [0, USER], ids=["root", "owner"])
def test_nobody_moves_a_file_to_another_project(
    filesystems: Callable[[str], Path], mount: MountFactory, uid: int
) -> None:
    """Natively the owner may; here limits are kept by it. What is not about it is done."""
    disk = filesystems("xfs")
    native = disk / "native"
    native.mkdir()
    scope = disk / "scope"
    scope.mkdir()
    tree = mount(scope=scope)
    (tree.mnt / "v").mkdir()
    try:
        for top in (native, tree.mnt / "v", tree.data("v")):
            os.chown(top, uid, uid)
        assert run_as(lambda: projects(native), uid)[:2] == [True, True]
        top = tree.mnt / "v"
        with_flags = struct.pack("I", get(top) | FS_NODUMP_FL)
        told = run_as(lambda: projects(top), uid)
        assert told == [False, False, told[2], with_flags, (0, 0)]
        assert told[2] in ("EPERM", "EOPNOTSUPP")
        assert lsattr(tree.data("v"), "-p").split() == ["0", "-" * 6 + "d" + "-" * 15]
    finally:
        tree.stop()
        shutil.rmtree(scope)
        native.rmdir()


# -- what anybody may ask


@pytest.mark.parametrize("uid", [0, USER], ids=["root", "user"])
def test_generation_and_label_are_told(pair: Pair, uid: int) -> None:
    def run(top: Path) -> object:
        path = top / "file"
        path.touch()
        told = []
        for asked in (path, top):
            fd = os.open(asked, os.O_RDONLY)
            told.append(outcome(fcntl.ioctl, fd, flags.FS_IOC_GETFSLABEL, bytes(256)))
            generation = outcome(fcntl.ioctl, fd, flags.FS_IOC_GETVERSION, b"\xff" * 8)
            assert len(generation) == 8
            # Each file has its own: it is that of what lies behind.
            behind = os.open(pair.behind(asked), os.O_RDONLY)
            assert generation == fcntl.ioctl(behind, flags.FS_IOC_GETVERSION, b"\xff" * 8)
            told.append(generation[4:])
            os.close(fd)
            os.close(behind)
        return told

    for top in (pair.native, pair.mounted):
        (top / "file").touch()
    run_as(lambda: pair.same(run), uid)


# -- other ioctls


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(termios.TCGETS, id="TCGETS"),
        pytest.param(0x5345_0001, id="nobody's"),
        pytest.param(0x4004_5345, id="nobody's, writing"),
        pytest.param(0x8004_5345, id="nobody's, reading"),
        pytest.param(0xC004_5345, id="nobody's, both"),
    ],
)
def test_an_unknown_ioctl_is_told_so(pair: Pair, kind: str, command: int) -> None:
    def run(top: Path) -> object:
        path = top / "it"
        path.mkdir() if kind == "directory" else path.touch()
        fd = os.open(path, os.O_RDONLY)
        try:
            return outcome(fcntl.ioctl, fd, command, bytes(64))
        finally:
            os.close(fd)

    assert pair.same(run) == "ENOTTY"


def test_the_root_has_no_flags(shared: Mounted) -> None:
    with pytest.raises(OSError) as caught:
        get(shared.mnt)
    assert caught.value.errno == errno.ENOTTY
    with pytest.raises(OSError) as caught:
        change(shared.mnt, 0)
    assert caught.value.errno == errno.ENOTTY


def test_an_immutable_file_has_no_owner_to_change_not_even_to_what_it_is(pair: Pair) -> None:
    """Whoever had it open for writing before: who only begins to write asks for the same."""

    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for mode in (0o644, 0o6755):
            path = top / f"{mode:o}"
            path.write_bytes(b"content")
            path.chmod(mode)
            with path.open("r+b"):
                chattr(path, "+i")
                told.append(outcome(os.chown, path, -1, -1))
                told.append(stat.filemode(path.stat().st_mode))
        return told

    assert pair.same(operation) == ["EPERM", "-rw-r--r--", "EPERM", "-rwsr-sr-x"]
