"""Symbolic links: data to the tree, resolved by the caller, never by the daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.children import USER, run_as
from tests.conftest import Mounted, MountFactory
from tests.mount.comparing import Pair, outcome

pytestmark = pytest.mark.no_data

TARGETS = {
    "one letter": "a",
    "the longest": "t" * 4095,
    "too long": "t" * 4096,
    "absolute": "/etc/hostname",
    "out of the tree": "../../../../../../etc/passwd",
    "dots": "..",
    "empty": "",
    "trailing slash": "directory/",
    "not UTF-8": os.fsdecode(b"\xff\xfe"),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_symlink_targets_are_data(pair: Pair, target: str) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "s"
        return [
            outcome(os.symlink, target, path),
            outcome(os.readlink, path),
            outcome(lambda: os.lstat(path).st_size),
            outcome(lambda: os.lstat(path).st_mode),
            outcome(lambda: [(entry.name, entry.is_symlink()) for entry in os.scandir(top)]),
        ]

    pair.same(operation)


def test_links_lead_where_the_caller_would_go(pair: Pair, shared: Mounted) -> None:
    """Resolution is the caller's: the daemon's own root and permissions do not count."""
    inside = pair.mounted / "inside"
    inside.write_bytes(b"in the tree")
    absolute = pair.mounted / "absolute"
    absolute.symlink_to(inside)
    relative = pair.mounted / "relative"
    relative.symlink_to(f"../{pair.mounted.name}/inside")
    secret = shared.scope.parent / "secret"
    secret.write_bytes(b"outside")
    secret.chmod(0o600)
    out = pair.mounted / "out"
    out.symlink_to(secret)
    magic = pair.mounted / "magic"
    magic.symlink_to("/proc/self/root")
    assert absolute.read_bytes() == relative.read_bytes() == b"in the tree"
    assert out.read_bytes() == b"outside"
    with pytest.raises(PermissionError):
        run_as(out.read_bytes)
    with pytest.raises(FileExistsError):
        os.mkdir(out)
    with pytest.raises(FileExistsError):
        os.close(os.open(out, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.lchown(out, 12, 34)
    os.utime(out, ns=(5, 5), follow_symlinks=False)
    assert secret.stat().st_uid == 0
    assert secret.stat().st_mtime_ns != 5
    out.rename(pair.mounted / "moved")
    (pair.mounted / "moved").unlink()
    assert secret.read_bytes() == b"outside"
    assert os.path.samestat(os.stat("/"), magic.stat())


def test_a_directory_replaced_by_a_link_behind_the_mount_is_not_followed(
    mount: MountFactory, workspace: Path
) -> None:
    """What a container does to trick a service on the host: swap a directory for a link.

    The user has no way into the place outside, but the daemon has.
    """
    tree = mount(cache="always")
    top = tree.mnt / "v"
    (top / "d").mkdir(parents=True)
    (top / "d" / "f").write_bytes(b"inside")
    for path in (top, top / "d", top / "d" / "f"):
        os.chown(path, USER, USER)
    outside = workspace / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"outside")
    outside.chmod(0o700)

    def trick() -> int:
        fd = os.open(top / "d", os.O_RDONLY)
        (tree.data("v") / "d").rename(tree.data("v") / "hidden")
        (tree.data("v") / "d").symlink_to(outside)
        done = 0
        for number in range(50):
            path = top / "d" / f"new{number}"
            for call in (
                path.touch,
                path.mkdir,
                (top / "d" / "f").read_bytes,
                (top / "d" / "f").unlink,
            ):
                outcome(call)
            done += outcome(lambda: os.close(os.open("f", os.O_CREAT, dir_fd=fd))) is None
        return done

    # The user can swap it as a container does that has the data path.
    os.chmod(tree.scope / "volumes", 0o755)
    for path in tree.data("v").parents[0], tree.scope:
        path.chmod(0o755)
    assert run_as(trick) > 0
    assert os.listdir(outside) == ["f"]
    assert (outside / "f").read_bytes() == b"outside"
    assert (tree.data("v") / "hidden" / "f").exists()
