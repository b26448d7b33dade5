"""A scope that belongs to a user, or that he can write, served by root."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import USER, needs_root, run_as
from tests.conftest import Mounted, MountFactory
from tests.mount.comparing import outcome

pytestmark = [needs_root, pytest.mark.allow_warnings, pytest.mark.no_data]


@pytest.fixture
def secret(workspace: Path) -> Path:
    """A directory that everybody could enter, in one that only root may."""
    inner = workspace / "root-only" / "inner"
    inner.mkdir(parents=True)
    (workspace / "root-only").chmod(0o700)
    (inner / "secret").write_text("nobody's business")
    return inner


@pytest.fixture
def theirs(workspace: Path, mount: MountFactory) -> Mounted:
    """A tree of a scope that USER has made and owns."""
    scope = workspace / "theirs"

    def make() -> None:
        for name in ("volumes", "trash"):
            (scope / name).mkdir()

    scope.mkdir()
    os.chown(scope, USER, USER)
    run_as(make)
    return mount(scope=scope)


def link(volume: Path, target: Path) -> None:
    volume.mkdir(exist_ok=True)
    (volume / "_data").symlink_to(target)


def test_a_link_of_theirs_leads_nowhere(theirs: Mounted, secret: Path) -> None:
    run_as(lambda: link(theirs.scope / "volumes" / "evil", secret))
    assert run_as(lambda: outcome(os.stat, secret)) == "EACCES"
    assert run_as(lambda: outcome(os.listdir, theirs.mnt / "evil")) == "EACCES"
    assert run_as(lambda: outcome(os.stat, theirs.mnt / "evil" / "secret")) == "EACCES"
    assert outcome(os.stat, theirs.mnt / "evil") == "EACCES"
    assert "volume 'evil' is refused" in theirs.log
    assert theirs.log.count("volume 'evil' is refused") == 1


def test_the_others_are_listed(theirs: Mounted, secret: Path) -> None:
    (theirs.mnt / "good").mkdir()
    run_as(lambda: link(theirs.scope / "volumes" / "evil", secret))
    assert "good" in os.listdir(theirs.mnt)
    assert [entry.name for entry in os.scandir(theirs.mnt) if entry.is_dir()] == ["good"]


@pytest.mark.parametrize("step", ["scope", "volumes", "volume", "link"])
def test_one_step_of_theirs_is_enough(
    step: str, workspace: Path, secret: Path, mount: MountFactory
) -> None:
    """A link is followed where all is root's, and not when any of it is not."""
    tree = mount()
    scope = tree.scope
    volume = scope / "volumes" / "aside"
    link(volume, secret)
    assert os.listdir(tree.mnt / "aside") == ["secret"]
    places = {
        "scope": scope,
        "volumes": scope / "volumes",
        "volume": volume,
        "link": volume / "_data",
    }
    os.chown(places[step], USER, USER, follow_symlinks=False)
    tree.drop_caches()
    assert outcome(os.stat, tree.mnt / "aside") == "EACCES"
    os.chown(places[step], 0, 0, follow_symlinks=False)
    tree.drop_caches()
    assert os.listdir(tree.mnt / "aside") == ["secret"]
    if step != "link":
        mode = os.stat(places[step]).st_mode & 0o7777
        for bit in (0o020, 0o002):
            places[step].chmod(mode | bit)
            tree.drop_caches()
            assert outcome(os.stat, tree.mnt / "aside") == "EACCES"
        places[step].chmod(mode)


def test_a_link_through_a_link_of_theirs(
    workspace: Path, secret: Path, mount: MountFactory
) -> None:
    tree = mount()
    own = workspace / "own"
    own.mkdir()
    (own / "data").mkdir()
    (own / "data" / "file").write_text("mine")
    os.chown(own, USER, USER)
    link(tree.scope / "volumes" / "aside", own / "data")
    assert os.listdir(tree.mnt / "aside") == ["file"]

    def swap() -> None:
        (own / "data").rename(own / "was")
        (own / "data").symlink_to(secret)

    run_as(swap)
    tree.drop_caches()
    assert outcome(os.stat, tree.mnt / "aside") == "EACCES"


@pytest.mark.parametrize("work", ["lookup", "rmdir", "label"])
def test_nothing_is_given_away(work: str, theirs: Mounted, secret: Path, workspace: Path) -> None:
    """What has the name of something that root would make there stays whose it is."""
    (theirs.mnt / "vol").mkdir()
    treasure = workspace / "root-only" / "file"
    treasure.write_text("kept")
    names: dict[str, Callable[[], None]] = {
        "references": lambda: (theirs.scope / "references").mkdir(),
        "lock": lambda: os.link(treasure, theirs.scope / "references" / ".lock"),
    }
    run_as(names["references"])
    # As where fs.protected_hardlinks is 0: root makes it for them.
    names["lock"]()
    match work:
        case "lookup":
            assert os.listdir(theirs.mnt / "vol") == []
        case "rmdir":
            (theirs.mnt / "vol").rmdir()
        case _:
            os.setxattr(theirs.mnt / "vol", "volfs.label.a", b"b")
    status = treasure.stat()
    assert (status.st_uid, status.st_gid) == (0, 0)
    assert treasure.read_text() == "kept"
    assert run_as(lambda: outcome(treasure.read_text)) == errno.errorcode[errno.EACCES]
