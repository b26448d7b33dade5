"""POSIX ACLs pass through as the backing filesystem keeps them, and count at once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.acls import ACCESS, DEFAULT, acl
from tests.children import MEMBERS, OTHER, USER, run_as
from tests.mount.comparing import Pair, outcome, owned
from tests.mount.kinds import make_open_to_all

pytestmark = pytest.mark.no_data


def facl(top: Path, *arguments: str) -> str:
    """Run setfacl, then tell what getfacl and stat say."""
    done = subprocess.run(["setfacl", *arguments], cwd=top, capture_output=True, text=True)
    told = subprocess.run(
        ["getfacl", "--numeric", "-R", "."], cwd=top, check=True, capture_output=True, text=True
    )
    modes = [str(owned(path)) for path in sorted(top.rglob("*"))]
    return "\n".join([str(done.returncode), done.stderr, told.stdout, *modes])


def test_setfacl_and_getfacl(pair: Pair) -> None:
    if not shutil.which("setfacl"):
        pytest.skip("setfacl is missing (Debian package acl)")

    def operation(top: Path) -> list[str]:
        (top / "d").mkdir()
        (top / "d" / "f").touch()
        (top / "s").symlink_to("d")
        told = [
            facl(top, *command.split())
            for command in (
                "-m u:1001:rw d/f",
                "-m g:2000:rwx,m::r d/f",
                "-m u:1001:rwx d",
                "-d -m u:1001:rwx,g:2000:rx d",
                "-x u:1001 d/f",
                "-m m::--- d/f",
                "-R -m o::r d",
                "-P -R -m u:1002:x .",
                "-d -m u:1001:rwx d/f",
                "-k d",
                "-b d/f",
                "-m u:no-such-user:r d",
            )
        ]
        (top / "d" / "f").chmod(0o751)
        told.append(facl(top, "-m", "g:3000:rwx", "d/f"))
        (top / "d" / "f").chmod(0o640)
        told.append(facl(top, "-d", "-m", "m::rx", "d"))
        (top / "d" / "g").touch()
        (top / "d" / "e").mkdir()
        told.append(facl(top, "-n", "-m", "u:1003:rwx", "d/g"))
        return told

    pair.same(operation)


@pytest.mark.parametrize(
    ("gid", "groups", "uid"),
    [(USER, [], USER), (MEMBERS, [], USER), (USER, [MEMBERS], USER), (0, [], 0)],
    ids=["stranger", "main group", "supplementary group", "root"],
)
@pytest.mark.parametrize("mode", [0o2755, 0o2644, 0o6777, 0o755])
@pytest.mark.parametrize("group", [MEMBERS, 0])
def test_setgid_stays_under_a_new_acl_for_members(
    pair: Pair, group: int, mode: int, uid: int, gid: int, groups: list[int]
) -> None:
    """The daemon's own group is root's, which makes no member of anybody else."""
    acls = [acl(7, 5, 5), acl(7, 5, 5, users={OTHER: 7}, mask=7), acl(6, 4, 0)]

    def operation(top: Path) -> list[tuple[str, int, int]]:
        for number in range(2 * len(acls)):
            path = make_open_to_all(top / f"it{number}", "directory" if number % 2 else "file")
            os.chown(path, USER, group)
            path.chmod(mode)

        def change() -> None:
            for number, entries in enumerate(acls):
                os.setxattr(top / f"it{2 * number}", ACCESS, entries)
                os.setxattr(top / f"it{2 * number + 1}", ACCESS, entries)

        run_as(change, uid, gid=gid, groups=groups)
        return [owned(top / f"it{number}") for number in range(2 * len(acls))]

    pair.same(operation)
    for path in pair.data.iterdir():
        assert owned(path) == owned(pair.native / path.name)


@pytest.mark.parametrize("entries", [0, 1, 100, 450, 500])
def test_long_acls_as_far_as_the_disk_takes_them(pair: Pair, entries: int) -> None:
    def operation(top: Path) -> list[object]:
        told: list[object] = []
        value = acl(7, 7, 7, users=dict.fromkeys(range(entries), 5), mask=7)
        for kind, name in (("file", ACCESS), ("directory", DEFAULT)):
            path = make_open_to_all(top / kind, kind)
            told.append(outcome(os.setxattr, path, name, value))
            told.append(outcome(os.getxattr, path, name))
        return told

    pair.same(operation)


def test_an_acl_has_at_most_a_page(pair: Pair) -> None:
    """A known difference: the kernel's FUSE refuses longer ones itself (fs/fuse/acl.c)."""
    path = make_open_to_all(pair.mounted / "it", "file")
    value = acl(7, 7, 7, users=dict.fromkeys(range(510), 5), mask=7)
    assert len(value) > os.sysconf("SC_PAGESIZE")
    assert outcome(os.setxattr, path, ACCESS, value) == "E2BIG"


MALFORMED = {
    "empty": b"",
    "no entries": acl(7, 7, 7)[:4],
    "cut short": acl(7, 7, 7)[:-3],
    "another version": b"\x09" + acl(7, 7, 7)[1:],
    "users without mask": acl(7, 7, 7, users={OTHER: 7}),
    "owner only": acl(7, 7, 7)[:12],
    "bits beyond": acl(15, 7, 7),
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_acls_are_refused_alike(pair: Pair, value: bytes) -> None:
    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for kind in ("file", "directory", "fifo", "symlink"):
            path = make_open_to_all(top / kind, kind)
            for name in (ACCESS, DEFAULT):
                told.append(outcome(os.setxattr, path, name, value, follow_symlinks=False))
                told.append(outcome(os.getxattr, path, name, follow_symlinks=False))
        return told

    pair.same(operation)


def test_acls_are_enforced_at_once(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(b"content")
        path.chmod(0o640)

        def read() -> object:
            return outcome(run_as, path.read_bytes)

        told: list[object] = [read()]
        os.setxattr(path, ACCESS, acl(6, 4, 0, users={USER: 4}, mask=4))
        told.append(read())
        path.chmod(0o600)  # the group bits are the mask now
        told.append(read())
        path.chmod(0o640)
        told.append(read())
        os.removexattr(path, ACCESS)
        told.append(read())
        return told

    pair.same(operation)
