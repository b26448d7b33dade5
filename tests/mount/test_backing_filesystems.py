"""Scopes and data paths on other filesystems than the machine's own, and on restricted ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import levels
from tests.conftest import Mounted, MountFactory, mounting, open_workspace
from tests.filesystems import bound, ext4, overlay, program, tmpfs, xfs
from tests.mount.comparing import Pair, outcome
from tests.mount.conftest import make_pair
from tests.mount.open_files import ACCESSES, use, wait_until_idle
from tests.mount.test_reading_and_writing import content
from tests.mount.workout import WORKOUT

MIB = 1 << 20

# -- scopes


@contextmanager
def overlay_on_disk(target: Path) -> Iterator[Path]:
    layers = target.with_name("layers")
    layers.mkdir()
    with overlay(target, layers):
        yield target


@contextmanager
def overlay_in_memory(target: Path) -> Iterator[Path]:
    with tmpfs(target.with_name("layers")) as layers, overlay(target, layers):
        yield target


@contextmanager
def journalled_ext4(target: Path) -> Iterator[Path]:
    """Which has no direct I/O of its own, and takes what is asked for as buffered."""
    with ext4(target, size=48 * MIB, options="data=journal"):
        yield target


PLACES: dict[str, Callable[[Path], AbstractContextManager[Path]]] = {
    "tmpfs": tmpfs,
    "xfs": xfs,
    "ext4 with a full journal": journalled_ext4,
    "overlay on disk": overlay_on_disk,
    "overlay in memory": overlay_in_memory,
}


@pytest.fixture(scope="module", params=PLACES)
def elsewhere(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A mount of a scope on each of these filesystems."""
    with (
        open_workspace() as workspace,
        PLACES[request.param](workspace / "place") as place,
        mounting(workspace) as mount,
    ):
        (place / "scope").mkdir()
        tree = mount(scope=place / "scope")
        yield tree
        wait_until_idle(tree)


@pytest.mark.parametrize("way", WORKOUT)
def test_a_scope_on_another_filesystem(elsewhere: Mounted, way: str) -> None:
    pair = make_pair(elsewhere)
    pair.chmod(0o755)
    pair.same(WORKOUT[way])


@pytest.mark.needs_passthrough
def test_the_kernel_serves_files_there(elsewhere: Mounted) -> None:
    pair = make_pair(elsewhere)
    with (pair.mounted / "f").open("w+b", buffering=0) as file:
        file.write(content(5000))
        assert elsewhere.statistics()["backing_ids"] == 1
        assert (pair.mounted / "f").read_bytes() == content(5000)


# -- no space


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_no_space_in_memory(mount: MountFactory, workspace: Path, kind: str) -> None:
    with ExitStack() as stack:
        memory = stack.enter_context(tmpfs(workspace / "memory", size="4m"))
        if kind == "overlay":
            memory = stack.enter_context(overlay(workspace / "place", memory))
        with mounting_at(memory / "scope", workspace) as tree:
            pair = make_pair(tree)

            def operation(top: Path) -> list[object]:
                path = top / "f"
                told: list[object] = []
                with path.open("w+b", buffering=0) as file:
                    done = 0
                    while not isinstance(count := outcome(file.write, b"x" * 10_000), str):
                        done += count
                    told += [count, outcome(os.pwrite, file.fileno(), b"y", 0), file.tell() == done]
                    told += [
                        path.stat().st_size == done,
                        path.read_bytes()[1:] == b"x" * (done - 1),
                    ]
                    file.truncate(5000)
                    told += [file.seek(0), file.write(b"z" * 8000), path.read_bytes()]
                path.unlink()
                return told

            pair.same(operation)


@contextmanager
def mounting_at(scope: Path, workspace: Path) -> Iterator[Mounted]:
    """A mount of a new scope there, which ends before what the scope is on."""
    scope.mkdir()
    inner = workspace / "work"
    inner.mkdir()
    inner.chmod(0o755)
    with mounting(inner) as mount:
        yield mount(scope=scope)


def test_no_space_on_xfs(workspace: Path) -> None:
    with xfs(workspace / "place") as place, mounting_at(place / "scope", workspace) as tree:
        pair = make_pair(tree)
        with (place / "filler").open("wb") as filler:
            left = os.statvfs(place)
            os.posix_fallocate(filler.fileno(), 0, left.f_bavail * left.f_frsize - 4 * MIB)
        with (pair.mounted / "f").open("w+b", buffering=0) as file:
            done, written = 0, b""
            while not isinstance(count := outcome(file.write, content(50_000, done)), str):
                written += content(50_000, done)[:count]
                done += count
            assert count == "ENOSPC" and MIB < done < 8 * MIB
            for start in range(0, done, 50_000):
                wanted = written[start : start + 50_000]
                assert os.pread(file.fileno(), 50_000, start) == wanted
        assert (pair.data / "f").stat().st_size == done
        (pair.mounted / "f").unlink()
        (pair.mounted / "g").write_bytes(content(MIB))
        assert (pair.data / "g").read_bytes() == content(MIB)


# -- a file below an overlay


def test_a_file_of_the_lower_layer_is_opened_read_written_and_mapped(workspace: Path) -> None:
    """Writing moves it to the upper layer, while others have it open."""
    layers = workspace / "layers"
    volume = layers / "lower" / "scope" / "volumes" / "vol" / "_data"
    native = layers / "lower" / "native"
    for directory in (volume, native):
        directory.mkdir(parents=True)
        for name in "abc":
            (directory / name).write_bytes(content(20_000))

    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for name, access in zip("abc", ACCESSES.values(), strict=True):
            path = top / name
            held = os.open(path, access)
            told += [path.read_bytes(), *use(held, b"1")]
            with path.open("r+b", buffering=0) as file:
                told += [*use(file.fileno(), b"2"), path.read_bytes()]
                told += [os.fstat(file.fileno()).st_size]
            os.close(held)
            told += [path.read_bytes(), path.stat().st_size]
        return told

    inner = workspace / "work"
    inner.mkdir()
    with overlay(workspace / "place", layers, lower=layers / "lower") as place:
        (workspace / "place" / "scope").chmod(0o755)
        with mounting(inner) as mount:
            tree = mount(scope=place / "scope")
            pair = Pair(tree.mnt / "vol", tree.data("vol"), place / "native")
            pair.same(operation)
            assert [(pair.data / name).read_bytes() for name in "abc"] == [
                (pair.native / name).read_bytes() for name in "abc"
            ]
            wait_until_idle(tree)


# -- data paths elsewhere


def linked(data: Path, place: Path, stack: ExitStack) -> None:
    """The data path leads to ``place``, as an administrator may have it."""
    place.chmod(0o755)
    data.symlink_to(place)


def on_tmpfs(data: Path, workspace: Path, stack: ExitStack) -> None:
    linked(data, stack.enter_context(tmpfs(workspace / "place")), stack)


def bound_from_tmpfs(data: Path, workspace: Path, stack: ExitStack) -> None:
    place = stack.enter_context(tmpfs(workspace / "place"))
    (place / "inside").mkdir()
    data.mkdir()
    stack.enter_context(bound(place / "inside", data))


def on_an_overlay(data: Path, workspace: Path, stack: ExitStack) -> None:
    linked(data, stack.enter_context(overlay_on_disk(workspace / "place")), stack)


def on_an_overlay_of_an_overlay(data: Path, workspace: Path, stack: ExitStack) -> None:
    """Deeper than what passthrough can be stacked upon."""
    layers = stack.enter_context(tmpfs(workspace / "upper"))
    first = stack.enter_context(overlay_on_disk(workspace / "first"))
    linked(data, stack.enter_context(overlay(workspace / "place", layers, lower=first)), stack)


def in_another_tree(data: Path, workspace: Path, stack: ExitStack) -> None:
    inner = workspace / "another"
    inner.mkdir()
    tree = stack.enter_context(mounting(inner))()
    (tree.mnt / "vol").mkdir()
    linked(data, tree.mnt / "vol", stack)


WHERE = {
    function.__name__.replace("_", " "): function
    for function in (
        on_tmpfs,
        bound_from_tmpfs,
        on_an_overlay,
        on_an_overlay_of_an_overlay,
        in_another_tree,
    )
}


@pytest.fixture(scope="module", params=WHERE)
def volume_elsewhere(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The top of a volume whose data path is elsewhere."""
    with open_workspace() as workspace, ExitStack() as stack:
        volume = workspace / "scope" / "volumes" / "vol"
        volume.mkdir(parents=True)
        WHERE[request.param](volume / "_data", workspace, stack)
        tree = stack.enter_context(mounting(workspace))(scope=workspace / "scope")
        yield tree.mnt / "vol"
        wait_until_idle(tree)


@pytest.mark.parametrize("way", WORKOUT)
def test_a_data_path_on_another_filesystem(volume_elsewhere: Path, way: str) -> None:
    top = volume_elsewhere / way.replace(" ", "-")
    top.mkdir()
    data = volume_elsewhere.parent.parent / "scope" / "volumes" / "vol" / "_data"
    native = data / f"native-{top.name}"
    native.mkdir()
    Pair(top, data / top.name, native).same(WORKOUT[way])


def test_volumes_on_several_filesystems_beside_each_other(
    workspace: Path, mount: MountFactory
) -> None:
    """Files with the same inode number, open at the same time, on tmpfs twice and on the disk."""
    with ExitStack() as stack:
        tops = []
        for name in ("one", "two"):
            place = stack.enter_context(tmpfs(workspace / name))
            (workspace / "scope" / "volumes" / name).mkdir(parents=True)
            (workspace / "scope" / "volumes" / name / "_data").symlink_to(place)
        inner = workspace / "work"
        inner.mkdir()
        tree = stack.enter_context(mounting(inner))(scope=workspace / "scope")
        (tree.mnt / "three").mkdir()
        tops = [tree.mnt / name for name in ("one", "two", "three")]
        for top in tops:
            (top / "f").write_bytes(top.name.encode() * 1000)
        numbers = [tree.data(name).joinpath("f").stat().st_ino for name in ("one", "two")]
        assert numbers[0] == numbers[1], "the files have different numbers: this tests less"
        opened = [(top, stack.enter_context((top / "f").open("r+b", buffering=0))) for top in tops]
        for top, file in opened:
            assert os.pread(file.fileno(), 5, 0) == (top.name.encode() * 5)[:5]
            os.pwrite(file.fileno(), b"written " + top.name.encode(), 0)
        for top, file in opened:
            wanted = b"written " + top.name.encode()
            assert (tree.data(top.name) / "f").read_bytes()[: len(wanted)] == wanted
            assert (top / "f").read_bytes()[: len(wanted)] == wanted
            file.close()


# -- what may not be written

WRITING = {
    "write": os.O_WRONLY,
    "both": os.O_RDWR,
    "append": os.O_WRONLY | os.O_APPEND,
    "truncate": os.O_WRONLY | os.O_TRUNC,
    "create": os.O_RDWR | os.O_CREAT,
    "create anew": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "direct": os.O_RDWR | os.O_DIRECT,
}


def attempts(path: Path) -> list[object]:
    """What comes of every way to write an existing file, while it is open for reading."""

    def write(flags: int) -> object:
        fd = os.open(path, flags, 0o644)
        try:
            return outcome(os.pwrite, fd, b"x", 0) if not flags & os.O_DIRECT else "opened"
        finally:
            os.close(fd)

    told: list[object] = []
    with path.open("rb") as reader:
        for flags in WRITING.values():
            told += [outcome(write, flags), reader.read(5)]
        told += [outcome(os.truncate, path, 3), outcome(path.chmod, 0o600)]
        told.append(outcome(os.utime, path, (1, 1)))
        told += [outcome(path.rename, path.with_name("new")), outcome(path.unlink)]
        told += [path.read_bytes(), path.stat().st_size]
    return told


def test_a_data_path_that_is_mounted_read_only(workspace: Path) -> None:
    """Whoever opens is told EROFS; reading, mapping and running go on."""
    with ExitStack() as stack:
        volume = workspace / "scope" / "volumes" / "vol"
        (volume / "_data").mkdir(parents=True)
        (volume / "_data" / "f").write_bytes(content(5000))
        stack.enter_context(bound(volume / "_data", volume / "_data", read_only=True))
        tree = stack.enter_context(mounting(workspace))(scope=workspace / "scope")
        expected, found = attempts(volume / "_data" / "f"), attempts(tree.mnt / "vol" / "f")
        assert found == expected
        assert expected[0] == "EROFS" and expected.count("EROFS") == len(WRITING) + 5
        assert outcome((tree.mnt / "vol" / "new").touch) == "EROFS"
        with (tree.mnt / "vol" / "f").open("rb") as reader:
            assert levels.chosen() != "passthrough" or tree.statistics()["backing_ids"] == 1
            assert reader.read() == content(5000)


def test_a_filesystem_that_is_read_only(workspace: Path) -> None:
    """The data path leads to it; it has no writable mount anywhere."""
    with ExitStack() as stack:
        place = stack.enter_context(tmpfs(workspace / "place"))
        (place / "f").write_bytes(content(5000))
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        (workspace / "scope" / "volumes" / "vol").mkdir(parents=True)
        (workspace / "scope" / "volumes" / "vol" / "_data").symlink_to(place)
        tree = stack.enter_context(mounting(workspace))(scope=workspace / "scope")
        expected, found = attempts(place / "f"), attempts(tree.mnt / "vol" / "f")
        assert found == expected
        assert expected.count("EROFS") == len(WRITING) + 5


@contextmanager
def flagged(flag: str, *paths: Path) -> Iterator[None]:
    """The files have an attribute of chattr(1)."""
    chattr = program("chattr", "e2fsprogs")
    if subprocess.run([chattr, f"+{flag}", *paths], capture_output=True, check=False).returncode:
        pytest.skip(f"the filesystem of /tmp has no attribute {flag}")
    try:
        yield
    finally:
        subprocess.run([chattr, f"-{flag}", *paths], check=True)


@pytest.mark.parametrize("flag", ["i", "a"], ids=["immutable", "append-only"])
def test_files_that_may_not_be_changed(pair: Pair, flag: str) -> None:
    """Nor by root: what is refused is refused in the same words, what is not is done."""
    for top in (pair.mounted, pair.native):
        (top / "f").write_bytes(content(5000))
    with flagged(flag, pair.data / "f", pair.native / "f"):
        told = pair.same(lambda top: attempts(top / "f"))
        assert told[0] == "EPERM"
        # It is the same for one who has the file open already.
        reader = (pair.mounted / "f").open("rb")
    with reader, flagged(flag, pair.data / "f"):
        assert outcome(lambda: (pair.mounted / "f").open("r+b")) == "EPERM"
        assert reader.read() == (pair.data / "f").read_bytes()


@pytest.mark.needs_tap
def test_an_append_only_file_is_touched(pair: Pair) -> None:
    """Its times may be set to now, though to nothing else."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(b"content")
        os.utime(path, (1, 1))
        with flagged("a", pair.behind(path)):
            told = [outcome(os.utime, path), path.stat().st_mtime > 1]
            return [*told, outcome(os.utime, path, (1, 1)), path.stat().st_mtime > 1]

    assert pair.same(operation) == [None, True, "EPERM", True]


def test_a_file_that_becomes_immutable_while_it_is_open(pair: Pair) -> None:
    """Who has it open for writing may write on, on the backing filesystems that say so."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(5000))
        told: list[object] = []
        with path.open("r+b", buffering=0) as file:
            behind = pair.behind(path)
            with flagged("i", behind):
                told += [outcome(file.write, b"written"), outcome(file.truncate, 100)]
                told += [outcome(lambda: path.open("r+b")), path.read_bytes()]
            told += [outcome(file.write, b"again"), path.read_bytes()]
        return told

    pair.same(operation)
