"""Who may remove and rename volumes where everybody makes them: root-mode=1777, sticky(7)."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import OTHER, USER, needs_root, run_as
from tests.conftest import Mounted, MountFactory, volfs
from tests.idmapping import CLONE_NEWUSER
from volfs.linux import syscalls

pytestmark = [needs_root, pytest.mark.no_data]


@pytest.fixture
def shared(mount: MountFactory) -> Mounted:
    """A tree in which everybody makes volumes, and that does not hear of what is done beside it."""
    return mount(root_mode="1777", cache="always")


def given_away(tree: Mounted) -> None:
    """A volume of USER that the kernel knows, removed beside the tree and made again for OTHER."""
    run_as(lambda: os.mkdir(tree.mnt / "vol"), USER)
    assert (tree.mnt / "vol").stat().st_uid == USER
    volfs(tree.scope, "rm", "vol")
    volfs(tree.scope, "create", "vol", "--opt", f"uid={OTHER}", "--opt", f"gid={OTHER}")
    (tree.data("vol") / "precious").write_text("another's")


def code_of(call: Callable[[], object], uid: int) -> int:
    try:
        run_as(call, uid)
    except OSError as error:
        return error.errno or 0
    return 0


def test_the_owner_does(shared: Mounted) -> None:
    for name in ("one", "two", "three"):
        run_as(lambda name=name: os.mkdir(shared.mnt / name), USER)  # type: ignore[misc]
    mnt = shared.mnt
    assert code_of(lambda: os.rename(mnt / "one", mnt / "four"), USER) == 0
    assert code_of(lambda: os.rmdir(mnt / "two"), USER) == 0
    assert code_of(lambda: os.rmdir(mnt / "three"), OTHER) == errno.EPERM
    (mnt / "three").rmdir()
    assert os.listdir(mnt) == ["four"]


def test_who_owned_the_volume_that_had_the_name_before_does_not_remove_it(shared: Mounted) -> None:
    given_away(shared)
    assert code_of(lambda: os.rmdir(shared.mnt / "vol"), USER) in (errno.EPERM, errno.ENOENT)
    assert (shared.data("vol") / "precious").read_text() == "another's"


def test_nor_as_root_of_a_user_namespace_of_its_own(shared: Mounted) -> None:
    """Where it has all capabilities, none of which count for files of others."""
    given_away(shared)

    def remove() -> None:
        syscalls.unshare(CLONE_NEWUSER)
        os.rmdir(shared.mnt / "vol")

    assert code_of(remove, USER) in (errno.EPERM, errno.ENOENT)
    assert (shared.data("vol") / "precious").read_text() == "another's"


def test_nor_rename_it(shared: Mounted) -> None:
    given_away(shared)
    mnt = shared.mnt
    code = code_of(lambda: os.rename(mnt / "vol", mnt / "mine"), USER)
    assert code in (errno.EPERM, errno.ENOENT)
    assert os.listdir(shared.scope / "volumes") == ["vol"]


def test_nor_exchange_it(shared: Mounted) -> None:
    given_away(shared)
    mnt = os.fsencode(shared.mnt)
    run_as(lambda: os.mkdir(mnt + b"/mine"), USER)

    def exchange() -> None:
        syscalls.renameat2(syscalls.AT_FDCWD, mnt + b"/vol", syscalls.AT_FDCWD, mnt + b"/mine", 2)

    assert code_of(exchange, USER) in (errno.EPERM, errno.ENOENT)
    assert (shared.data("vol") / "precious").exists()


def test_nor_label_it(shared: Mounted) -> None:
    given_away(shared)

    def label() -> None:
        os.setxattr(shared.mnt / "vol", "volfs.label.mine", b"yes")

    assert code_of(label, USER) in (errno.ESTALE, errno.EACCES, errno.ENOENT)
    assert "mine" not in volfs(shared.scope, "inspect", "vol")


def test_its_new_owner_does(shared: Mounted) -> None:
    given_away(shared)
    shared.drop_caches()
    volfs(shared.scope, "ls")
    assert code_of(lambda: os.rmdir(shared.mnt / "vol"), OTHER) == 0
    assert os.listdir(shared.mnt) == []


def test_who_may_do_all_to_files_does(shared: Mounted) -> None:
    """CAP_FOWNER, without being root."""
    run_as(lambda: os.mkdir(shared.mnt / "vol"), USER)
    volume = str(shared.mnt / "vol")
    program = [sys.executable, "-c", "import os, sys; os.rmdir(sys.argv[1])", volume]
    dropped = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"]
    powers = ["--inh-caps=+fowner", "--ambient-caps=+fowner"]
    subprocess.run([*dropped, *powers, *program], check=True)
    assert not Path(volume).exists()
