"""How soon changes made behind the mount, in the data path, are seen through it."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Mounted, few_descriptors, mounting, open_workspace, wait_for
from tests.mount.comparing import Pair, outcome
from tests.mount.conftest import make_pair
from tests.mount.open_files import descriptors_on

POLICY = 1.0
"""Seconds that ``auto`` lets the kernel answer from memory."""
MARGIN = 2.0
"""Seconds that a loaded machine may take on top."""
DESCRIPTORS = 256
"""How many the daemons here may have: enough, and soon used up."""
SWEEP = 5.0
"""Seconds between two looks for files deleted behind the mount."""


@pytest.fixture(scope="module")
def mounts() -> Iterator[dict[str, Mounted]]:
    """A mount of each policy."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        policies = ("never", "auto", "always")
        yield {
            policy: mount(cache=policy, prepare=few_descriptors(DESCRIPTORS)) for policy in policies
        }


@pytest.fixture
def never(mounts: dict[str, Mounted]) -> Pair:
    return make_pair(mounts["never"])


@pytest.fixture
def auto(mounts: dict[str, Mounted]) -> Pair:
    return make_pair(mounts["auto"])


@pytest.fixture
def always(mounts: dict[str, Mounted]) -> Pair:
    return make_pair(mounts["always"])


Question = tuple[Callable[[], object], object]
"""What asks the mount, and what the answer must become."""

Scene = Callable[[Path, Path], Question]
"""Prepares something in the data path, lets the kernel learn it through the mount, and changes it
behind the mount."""


def appears(data: Path, mounted: Path) -> Question:
    assert not (mounted / "new").exists()
    (data / "new").write_bytes(b"content")
    return (mounted / "new").exists, True


def appears_deep(data: Path, mounted: Path) -> Question:
    assert not (mounted / "a" / "b").exists()
    (data / "a" / "b").mkdir(parents=True)
    return (mounted / "a" / "b").is_dir, True


def is_listed(data: Path, mounted: Path) -> Question:
    assert os.listdir(mounted) == []
    (data / "new").touch()
    return lambda: os.listdir(mounted), ["new"]


def is_deleted(data: Path, mounted: Path) -> Question:
    (mounted / "f").touch()
    (data / "f").unlink()
    return (mounted / "f").exists, False


def is_renamed(data: Path, mounted: Path) -> Question:
    (mounted / "d").mkdir()
    (mounted / "d" / "f").touch()
    assert not (mounted / "e").exists()
    (data / "d").rename(data / "e")
    return lambda: ((mounted / "d").exists(), (mounted / "e" / "f").exists()), (False, True)


def changes_mode(data: Path, mounted: Path) -> Question:
    (mounted / "f").touch(0o644)
    (data / "f").chmod(0o600)
    return lambda: oct((mounted / "f").stat().st_mode), oct(0o100600)


def changes_owner(data: Path, mounted: Path) -> Question:
    (mounted / "f").touch()
    os.chown(data / "f", 12, 34)
    return lambda: (mounted / "f").stat().st_gid, 34


def changes_times(data: Path, mounted: Path) -> Question:
    (mounted / "f").touch()
    os.utime(data / "f", ns=(5, 7))
    return lambda: (mounted / "f").stat().st_mtime_ns, 7


def gets_a_link(data: Path, mounted: Path) -> Question:
    (mounted / "f").touch()
    os.link(data / "f", data / "g")
    return lambda: (mounted / "f").stat().st_nlink, 2


def grows(data: Path, mounted: Path) -> Question:
    (mounted / "f").write_bytes(b"content")
    assert (mounted / "f").read_bytes() == b"content"
    with (data / "f").open("ab") as file:
        file.write(b" and more")
    return (mounted / "f").read_bytes, b"content and more"


def shrinks(data: Path, mounted: Path) -> Question:
    (mounted / "f").write_bytes(b"content")
    os.truncate(data / "f", 3)
    return (mounted / "f").read_bytes, b"con"


def changes_content(data: Path, mounted: Path) -> Question:
    """The same size, and within a tick of the clock if the machine is quick."""
    (mounted / "f").write_bytes(b"a" * 5000)
    assert (mounted / "f").read_bytes() == b"a" * 5000
    with (data / "f").open("r+b") as file:
        file.write(b"b" * 5000)
    return (mounted / "f").read_bytes, b"b" * 5000


def changes_content_under_the_same_time(data: Path, mounted: Path) -> Question:
    """As rsync --inplace --times and tar do."""
    (mounted / "f").write_bytes(b"a" * 5000)
    os.utime(mounted / "f", ns=(5, 7))
    assert (mounted / "f").read_bytes() == b"a" * 5000
    with (data / "f").open("r+b") as file:
        file.write(b"b" * 5000)
    os.utime(data / "f", ns=(5, 7))
    return (mounted / "f").read_bytes, b"b" * 5000


def changes_while_open(data: Path, mounted: Path) -> Question:
    (mounted / "f").write_bytes(b"a" * 5000)
    fd = os.open(mounted / "f", os.O_RDONLY)
    assert os.pread(fd, 5000, 0) == b"a" * 5000
    with (data / "f").open("r+b") as file:
        file.write(b"b" * 5000)

    def ask() -> bytes:
        found = os.pread(fd, 5000, 0)
        if found == b"b" * 5000:
            os.close(fd)
        return found

    return ask, b"b" * 5000


def is_replaced(data: Path, mounted: Path) -> Question:
    (mounted / "f").write_bytes(b"old")
    (data / "g").write_bytes(b"new")
    (data / "g").rename(data / "f")
    return (mounted / "f").read_bytes, b"new"


def becomes_a_directory(data: Path, mounted: Path) -> Question:
    (mounted / "f").write_bytes(b"old")
    (data / "f").unlink()
    (data / "f").mkdir()
    (data / "f" / "inside").touch()
    return lambda: outcome(os.listdir, mounted / "f"), ["inside"]


def gets_another_target(data: Path, mounted: Path) -> Question:
    (mounted / "s").symlink_to("old")
    assert os.readlink(mounted / "s") == "old"
    (data / "s").unlink()
    (data / "s").symlink_to("new target")
    return lambda: os.readlink(mounted / "s"), "new target"


def comes_back(data: Path, mounted: Path) -> Question:
    (mounted / "f").touch()
    (mounted / "f").unlink()
    assert not (mounted / "f").exists()
    (data / "f").write_bytes(b"again")
    return lambda: outcome((mounted / "f").read_bytes), b"again"


SCENES = [
    appears,
    appears_deep,
    is_listed,
    is_deleted,
    is_renamed,
    changes_mode,
    changes_owner,
    changes_times,
    gets_a_link,
    grows,
    shrinks,
    changes_content,
    changes_content_under_the_same_time,
    changes_while_open,
    is_replaced,
    becomes_a_directory,
    gets_another_target,
    comes_back,
]


each_scene = pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)


@each_scene
def test_never_sees_every_change_at_once(never: Pair, scene: Scene) -> None:
    ask, expected = scene(never.data, never.mounted)
    assert ask() == expected


@pytest.fixture(scope="module")
def asked(mounts: dict[str, Mounted]) -> tuple[float, dict[Scene, Question | Exception]]:
    """All scenes with ``auto``, at once so as to wait only once: until when, and for what."""
    found: dict[Scene, Question | Exception] = {}
    for scene in SCENES:
        pair = make_pair(mounts["auto"])
        try:
            found[scene] = scene(pair.data, pair.mounted)
        except Exception as error:  # noqa: BLE001 - the failure of the test of this scene
            found[scene] = error
    return time.monotonic() + POLICY + MARGIN, found


@each_scene
def test_auto_sees_every_change_within_its_time(
    asked: tuple[float, dict[Scene, Question | Exception]], scene: Scene
) -> None:
    end, questions = asked
    question = questions[scene]
    if isinstance(question, Exception):
        raise question
    ask, expected = question
    while (answer := ask()) != expected and time.monotonic() < end:
        time.sleep(0.05)
    assert answer == expected


def test_auto_answers_from_memory_meanwhile(auto: Pair) -> None:
    """That the policy is one: else the other tests show nothing of it."""
    path = auto.mounted / "f"
    for _ in range(20):
        path.touch()
        path.stat()
        start = time.monotonic()
        (auto.data / "f").chmod(0o600)
        mode = path.stat().st_mode
        if time.monotonic() - start < POLICY / 2:
            assert mode & 0o777 == 0o644
            return
    pytest.fail("the machine was never quick enough to look within half a second")


@each_scene
@pytest.mark.parametrize("policy", ["never", "auto", "always"])
def test_changes_through_the_mount_are_seen_at_once(
    mounts: dict[str, Mounted], policy: str, scene: Scene
) -> None:
    """Whatever the policy, the mount's own changes are right immediately."""
    pair = make_pair(mounts[policy])
    ask, expected = scene(pair.mounted, pair.mounted)
    assert ask() == expected


def test_always_need_not_see_changes_behind_but_sees_its_own(always: Pair) -> None:
    path = always.mounted / "f"
    path.write_bytes(b"content")
    assert path.read_bytes() == b"content"
    (always.data / "f").chmod(0o600)
    path.write_bytes(b"changed here")
    assert path.read_bytes() == b"changed here"
    with path.open("ab") as file:
        file.write(b", longer")
        file.flush()
        assert path.stat().st_size == len(b"changed here, longer")
    assert path.read_bytes() == b"changed here, longer"
    path.rename(always.mounted / "g")
    assert not path.exists()
    assert (always.mounted / "g").read_bytes() == b"changed here, longer"
    (always.mounted / "g").unlink()
    assert os.listdir(always.mounted) == []
    assert not (always.mounted / "g").exists()


@pytest.mark.parametrize("policy", ["never", "auto", "always"])
def test_creating_over_what_appeared_behind_the_mount(
    mounts: dict[str, Mounted], policy: str
) -> None:
    """The kernel may believe the name is free; what the disk says counts."""
    pair = make_pair(mounts[policy])

    def hidden(name: str) -> Path:
        assert not (pair.mounted / name).exists()
        (pair.data / name).write_bytes(b"there first")
        return pair.mounted / name

    exclusive = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    with pytest.raises(FileExistsError):
        os.open(hidden("exclusive"), exclusive)
    with pytest.raises(FileExistsError):
        hidden("directory").mkdir()
    with pytest.raises(FileExistsError):
        hidden("symlink").symlink_to("x")
    with pytest.raises(FileExistsError):
        os.mkfifo(hidden("fifo"))
    (pair.mounted / "source").write_bytes(b"source")
    with pytest.raises(FileExistsError):
        os.link(pair.mounted / "source", hidden("link"))
    fd = os.open(hidden("opened"), os.O_CREAT | os.O_RDWR, 0o644)
    assert os.read(fd, 20) == b"there first"
    os.close(fd)
    hidden("truncated").write_bytes(b"new")
    assert (pair.data / "truncated").read_bytes() == b"new"
    (pair.mounted / "source").rename(hidden("replaced"))
    assert (pair.data / "replaced").read_bytes() == b"source"


@pytest.mark.parametrize("policy", ["never", "auto", "always"])
def test_using_what_vanished_behind_the_mount(mounts: dict[str, Mounted], policy: str) -> None:
    """An errno that says so, or the file itself while somebody holds it; never EIO."""
    pair = make_pair(mounts[policy])

    def gone(name: str) -> Path:
        (pair.mounted / name).write_bytes(b"content")
        (pair.data / name).unlink()
        return pair.mounted / name

    allowed = (None, "ENOENT", "ESTALE")
    calls: list[Callable[[Path], object]] = [
        lambda path: path.stat() and None,
        lambda path: path.unlink(),
        lambda path: path.rename(pair.mounted / "other") and None,
        lambda path: path.open("rb").close(),
        lambda path: path.chmod(0o600),
        os.utime,
        lambda path: os.truncate(path, 1),
        lambda path: os.link(path, pair.mounted / "another"),
        lambda path: os.listxattr(path) or None,
    ]
    for number, call in enumerate(calls):
        assert outcome(call, gone(f"f{number}")) in allowed
    (pair.mounted / "d").mkdir()
    (pair.mounted / "d" / "f").touch()
    (pair.data / "d" / "f").unlink()
    (pair.data / "d").rmdir()
    assert outcome(lambda: os.listdir(pair.mounted / "d") or None) in allowed
    assert outcome((pair.mounted / "d" / "new").touch) in allowed
    assert outcome((pair.mounted / "d" / "f").unlink) in allowed
    assert outcome((pair.mounted / "d").rmdir) in allowed


def test_an_open_file_deleted_behind_the_mount_lives_on(never: Pair) -> None:
    (never.mounted / "f").write_bytes(b"content")
    with (never.mounted / "f").open("r+b") as file:
        (never.data / "f").unlink()
        (never.data / "f").write_bytes(b"another")
        assert file.read() == b"content"
        file.write(b" more")
        file.flush()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert (never.mounted / "f").read_bytes() == b"another"
        file.seek(0)
        assert file.read() == b"content more"


@pytest.mark.parametrize("size", [12, mmap.PAGESIZE])
@pytest.mark.parametrize("policy", ["never", "auto", "always"])
def test_appends_behind_and_through_lose_nothing(
    mounts: dict[str, Mounted], policy: str, size: int
) -> None:
    """A log that is kept open on both sides: each record goes to the end as it is then.

    Also one of whole pages, which looks like what is written back of a mapping.
    """
    pair = make_pair(mounts[policy])
    with (
        (pair.mounted / "log").open("ab", buffering=0) as through,
        (pair.data / "log").open("ab", buffering=0) as behind,
    ):
        for number in range(100):
            for file, side in ((through, b"through"), (behind, b"behind")):
                record = b"%s %03d\n" % (side, number)
                assert file.write(record.rjust(size)) == size
    lines = (pair.data / "log").read_bytes().splitlines()
    expected = [b"%s %03d" % (side, n) for n in range(100) for side in (b"through", b"behind")]
    assert [line.strip() for line in lines] == expected


def test_a_mapped_file_changed_behind_the_mount(never: Pair) -> None:
    """A reader that asks for the file's state in between gets the new content in its map."""
    (never.mounted / "f").write_bytes(b"a" * 8192)
    with (
        (never.mounted / "f").open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[5000:5001] == b"a"
        with (never.data / "f").open("r+b") as behind:
            behind.write(b"b" * 8192)
        assert os.pread(file.fileno(), 1, 5000) == b"b"
        assert mapped[5000:5001] == b"b"


def test_a_file_deleted_behind_the_mount_gives_its_space_back(
    mounts: dict[str, Mounted], always: Pair
) -> None:
    """With ``always`` nobody asks for it again, so that the daemon must look by itself."""
    pid = mounts["always"].pid
    (always.data / "f").write_bytes(b"x" * (1 << 20))
    number = (always.mounted / "f").stat().st_ino
    (always.data / "f").unlink()
    assert any(descriptors_on(pid, {number})), "nothing held: this test shows nothing here"
    wait_for(
        lambda: not any(descriptors_on(pid, {number})),
        "the daemon to let go of a deleted file",
        SWEEP + MARGIN,
    )
