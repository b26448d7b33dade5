"""What the root of the tree means: each row of the table of volfs-tree(7), through a real mount."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.children import NOBODY, run_as
from tests.conftest import Mounted, MountFactory, volfs, wait_for
from volfs.linux import syscalls

pytestmark = pytest.mark.no_data


@contextmanager
def answers(code: int) -> Iterator[None]:
    """The system call inside fails with this errno and no other."""
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]


def rename(old: Path, new: Path, flags: int = 0) -> None:
    syscalls.renameat2(
        syscalls.AT_FDCWD, os.fsencode(old), syscalls.AT_FDCWD, os.fsencode(new), flags
    )


# -- lookup and readdir


def test_volumes_are_listed_and_found_by_name(tree: Mounted) -> None:
    for name in ("b", "a", "vol1 (copy 1)", "größe"):
        (tree.mnt / name).mkdir()
    assert sorted(os.listdir(tree.mnt)) == ["a", "b", "größe", "vol1 (copy 1)"]
    assert all((tree.mnt / name).is_dir() for name in os.listdir(tree.mnt))
    assert tree.data("a").is_dir()


def test_volumes_made_and_removed_beside_the_mount_appear_and_go(mount: MountFactory) -> None:
    tree = mount(cache="never")
    tree.data("made").mkdir(parents=True)
    (tree.scope / "volumes" / "metadata.db").write_bytes(b"Docker keeps this here")
    (tree.scope / "volumes" / "half-made").mkdir()
    assert os.listdir(tree.mnt) == ["made"]
    assert not (tree.mnt / "metadata.db").exists()
    assert not (tree.mnt / "half-made").exists()
    shutil.rmtree(tree.scope / "volumes" / "made")
    assert os.listdir(tree.mnt) == []


@pytest.mark.parametrize("cache", ["auto", "always"])
def test_a_volume_made_beside_the_mount_appears_at_once(mount: MountFactory, cache: str) -> None:
    """Also under a name that was looked for in vain, as every runtime does."""
    tree = mount(cache=cache)
    for name in ("one", "two", "three"):
        assert not (tree.mnt / name).exists()
        tree.data(name).mkdir(parents=True)
        assert (tree.mnt / name).is_dir()
    shutil.rmtree(tree.scope / "volumes" / "one")
    wait_for(lambda: not (tree.mnt / "one").exists(), "the end of the volume", deadline=3)


def test_names_that_cannot_be_a_volume_are_not_there(tree: Mounted) -> None:
    for name in (".Trash-0", ".hidden", "-x", "a:b"):
        tree.data(name).mkdir(parents=True)  # even when somebody made such a directory
        with answers(errno.ENOENT):
            os.stat(tree.mnt / name)
    assert os.listdir(tree.mnt) == []


# -- mkdir


def test_mkdir_makes_a_volume_of_the_caller(mount: MountFactory) -> None:
    tree = mount(root_mode="1777")

    def make() -> None:
        os.umask(0o027)
        os.mkdir(tree.mnt / "mine", 0o775)
        os.mkdir(tree.mnt / "open", 0o1777)

    run_as(make, 1000, gid=1001)
    for place in (tree.mnt / "mine", tree.data("mine")):
        status = place.stat()
        assert (status.st_uid, status.st_gid) == (1000, 1001)
        assert stat.S_IMODE(status.st_mode) == 0o750
    assert stat.S_IMODE((tree.mnt / "open").stat().st_mode) == 0o1750


def test_mkdir_of_an_existing_volume(volume: Path) -> None:
    with answers(errno.EEXIST):
        volume.mkdir()


@pytest.mark.parametrize(
    "name",
    [
        ".Trash-0",
        ".DS_Store",
        "-rf",
        " lead",
        "trail ",
        "a:b",
        "a,b",
        "back\\slash",
        'quo"te',
        "apos'trophe",
        "new\nline",
        "bell\x07",
        "del\x7f",
    ],
)
def test_mkdir_of_a_name_that_is_no_volume_name(tree: Mounted, name: str) -> None:
    with answers(errno.EINVAL):
        (tree.mnt / name).mkdir()
    assert os.listdir(tree.mnt) == []


def test_mkdir_of_odd_bytes_and_lengths(tree: Mounted) -> None:
    root = os.fsencode(tree.mnt)
    with answers(errno.EINVAL):
        os.mkdir(root + b"/\xff\xfe")
    with answers(errno.ENAMETOOLONG):
        os.mkdir(root + b"/" + b"x" * 256)
    os.mkdir(root + b"/" + b"x" * 255)
    os.mkdir(root + b"/" + "ä".encode() * 127)
    assert len(os.listdir(tree.mnt)) == 2


def test_who_may_make_volumes_is_the_mode_of_the_root(mount: MountFactory) -> None:
    closed = mount()
    with answers(errno.EACCES):
        run_as(lambda: os.mkdir(closed.mnt / "no"), 1000)
    given = mount(root_owner="1000:1000")
    run_as(lambda: os.mkdir(given.mnt / "yes"), 1000)
    assert (given.mnt / "yes").stat().st_uid == 1000


# -- rmdir


def test_rmdir_removes_the_volume_with_its_data_into_the_trash(tree: Mounted) -> None:
    volume = tree.mnt / "vol"
    volume.mkdir()
    (volume / "dir").mkdir()
    (volume / "dir" / "file").write_text("precious")
    volume.rmdir()
    assert not volume.exists()
    assert os.listdir(tree.mnt) == []
    kept = list((tree.scope / "trash").rglob("file"))
    assert [path.read_text() for path in kept] == ["precious"]
    volume.mkdir()
    assert os.listdir(volume) == []


def test_what_rmdir_removed_is_restored(mount: MountFactory) -> None:
    tree = mount(cache="never")
    (tree.mnt / "vol").mkdir()
    (tree.mnt / "vol" / "file").write_text("precious")
    (tree.mnt / "vol").rmdir()
    volfs(tree.scope, "restore", "vol")
    assert (tree.mnt / "vol" / "file").read_text() == "precious"


def test_rmdir_empty_refuses_a_volume_with_data(mount: MountFactory) -> None:
    tree = mount(rmdir="empty")
    volume = tree.mnt / "vol"
    volume.mkdir()
    (volume / "file").touch()
    with answers(errno.ENOTEMPTY):
        volume.rmdir()
    (volume / "file").unlink()
    volume.rmdir()
    assert os.listdir(tree.mnt) == []


def test_rmdir_keep_removed_0_deletes_at_once(mount: MountFactory) -> None:
    tree = mount(keep_removed="0")
    (tree.mnt / "vol").mkdir()
    (tree.mnt / "vol" / "file").write_text("gone")
    (tree.mnt / "vol").rmdir()
    trash = tree.scope / "trash"
    wait_for(lambda: not any(files for *_, files in os.walk(trash)), "the deletion")


def test_rmdir_while_a_file_is_open(tree: Mounted, volume: Path) -> None:
    with (volume / "file").open("w") as file:
        with answers(errno.EBUSY):
            volume.rmdir()
        users = os.getxattr(volume, "volfs.users").decode()
        assert "file" in users
        assert str(os.getpid()) in users
        file.write("still here")
    wait_for(lambda: tree.statistics()["open_files"] == 0, "the release")
    volume.rmdir()


def test_rmdir_while_a_directory_is_open(tree: Mounted, volume: Path) -> None:
    (volume / "sub").mkdir()
    fd = os.open(volume / "sub", os.O_RDONLY)
    with answers(errno.EBUSY):
        volume.rmdir()
    os.close(fd)
    wait_for(lambda: tree.statistics()["open_directories"] == 0, "the release")
    volume.rmdir()


@pytest.mark.parametrize("native", [False, True], ids=["tree", "data path"])
def test_rmdir_while_bind_mounted_in_another_namespace(
    tree: Mounted, volume: Path, workspace: Path, native: bool
) -> None:
    (volume / "sub").mkdir()
    target = workspace / "target"
    target.mkdir()
    source = (tree.data("vol") if native else volume) / "sub"
    script = f"mount --bind '{source}' '{target}' && echo mounted && read line"
    with subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as shell:
        assert shell.stdout and shell.stdin
        assert shell.stdout.readline() == "mounted\n"
        with answers(errno.EBUSY):
            volume.rmdir()
        with answers(errno.EBUSY):
            rename(volume, tree.mnt / "other")
        users = os.getxattr(volume, "volfs.users").decode()
        assert str(target) in users
        shell.stdin.write("\n")
        shell.stdin.close()
        assert shell.wait() == 0
    volume.rmdir()


def test_rmdir_of_what_is_not_there(tree: Mounted) -> None:
    with answers(errno.ENOENT):
        (tree.mnt / "none").rmdir()


def test_rmdir_of_a_data_path_that_leads_out_of_the_scope(tree: Mounted, workspace: Path) -> None:
    outside = workspace / "elsewhere"
    outside.mkdir()
    (outside / "file").write_text("keep")
    (tree.scope / "volumes" / "linked").mkdir()
    tree.data("linked").symlink_to(outside)
    assert (tree.mnt / "linked" / "file").read_text() == "keep"
    with answers(errno.EPERM):
        (tree.mnt / "linked").rmdir()
    assert (outside / "file").read_text() == "keep"


def test_a_working_directory_in_a_removed_volume_is_dead(tree: Mounted, volume: Path) -> None:
    (volume / "sub").mkdir()
    (volume / "sub" / "file").write_text("x")
    script = (
        'cd "$1"/sub && rmdir "$1" && { cat file 2>/dev/null && echo readable;'
        " touch new 2>/dev/null && echo writable; echo done; }"
    )
    shell = subprocess.run(
        ["sh", "-c", script, "sh", str(volume)], capture_output=True, text=True, check=True
    )
    assert shell.stdout == "done\n"


# -- rename


def test_rename_in_the_root_renames_the_volume(tree: Mounted, volume: Path) -> None:
    (volume / "file").write_text("data")
    with (volume / "file").open() as file:
        rename(volume, tree.mnt / "new")
        assert file.read() == "data"
    assert os.listdir(tree.mnt) == ["new"]
    assert (tree.mnt / "new" / "file").read_text() == "data"
    assert (tree.data("new") / "file").read_text() == "data"


@pytest.mark.parametrize("flags", [0, syscalls.RENAME_NOREPLACE])
def test_rename_never_replaces_a_volume(tree: Mounted, volume: Path, flags: int) -> None:
    (tree.mnt / "other").mkdir()
    with answers(errno.EEXIST):
        rename(volume, tree.mnt / "other", flags)
    assert sorted(os.listdir(tree.mnt)) == ["other", "vol"]


def test_exchange_of_two_volumes(tree: Mounted, volume: Path) -> None:
    other = tree.mnt / "other"
    other.mkdir()
    (volume / "1").touch()
    (other / "2").touch()
    rename(volume, other, syscalls.RENAME_EXCHANGE)
    assert os.listdir(other) == ["1"]
    assert os.listdir(volume) == ["2"]
    assert os.listdir(tree.data("vol")) == ["2"]


@pytest.mark.parametrize("flags", [0, syscalls.RENAME_EXCHANGE], ids=["rename", "exchange"])
def test_renamed_volumes_are_known_by_their_new_names_at_once(tree: Mounted, flags: int) -> None:
    """To who has them open, too: no name is looked up again for that."""
    names = {"one": "two", "two": "one"} if flags else {"one": "new"}
    with ExitStack() as stack:
        held = {}
        for name in names:
            (tree.mnt / name).mkdir()
            held[name] = os.open(tree.mnt / name, os.O_RDONLY)
            stack.callback(os.close, held[name])
            os.setxattr(held[name], "volfs.label.was", name.encode())
        rename(tree.mnt / "one", tree.mnt / names["one"], flags)
        for was, name in names.items():
            assert os.getxattr(held[was], "volfs.name") == name.encode()
            os.setxattr(held[was], "volfs.label.is", name.encode())
            sidecar = json.loads((tree.data(name).parent / "volume.json").read_text())
            assert sidecar["labels"] == {"was": was, "is": name}


def test_rename_to_a_name_that_is_no_volume_name(tree: Mounted, volume: Path) -> None:
    with answers(errno.EINVAL):
        rename(volume, tree.mnt / ".hidden")
    assert os.listdir(tree.mnt) == ["vol"]


def test_rename_across_root_and_volume(tree: Mounted, volume: Path) -> None:
    (volume / "dir").mkdir()
    (volume / "file").touch()
    (tree.mnt / "other").mkdir()
    for old, new in (
        (volume / "dir", tree.mnt / "dir"),
        (volume / "file", tree.mnt / "file"),
        (tree.mnt / "other", volume / "other"),
    ):
        with answers(errno.EXDEV):
            rename(old, new)
    with answers(errno.EXDEV):
        os.link(volume / "file", tree.mnt / "file")


def test_mv_of_a_directory_into_the_root_makes_a_volume(tree: Mounted, volume: Path) -> None:
    (volume / "dir").mkdir()
    (volume / "dir" / "file").write_text("data")
    subprocess.run(["mv", volume / "dir", tree.mnt], check=True)
    assert (tree.data("dir") / "file").read_text() == "data"
    assert not (volume / "dir").exists()


def test_rename_and_link_between_two_volumes(tree: Mounted, volume: Path) -> None:
    other = tree.mnt / "other"
    other.mkdir()
    (volume / "dir").mkdir()
    (volume / "dir" / "file").write_text("data")
    os.link(volume / "dir" / "file", other / "link")
    rename(volume / "dir", other / "dir")
    assert (other / "dir" / "file").read_text() == "data"
    assert (other / "link").stat().st_ino == (other / "dir" / "file").stat().st_ino
    assert (other / "link").stat().st_nlink == 2
    with (other / "dir" / "file").open(), answers(errno.EBUSY):
        other.rmdir()  # it is known to be in the other volume now


# -- what cannot live in the root


@pytest.mark.parametrize(
    "make",
    [
        lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY)),
        lambda path: os.mkfifo(path),
        lambda path: os.mknod(path, stat.S_IFREG | 0o644),
        lambda path: os.symlink("target", path),
    ],
    ids=["create", "mkfifo", "mknod", "symlink"],
)
def test_only_directories_live_in_the_root(tree: Mounted, make: Callable[[Path], None]) -> None:
    with answers(errno.EPERM):
        make(tree.mnt / "name")
    assert os.listdir(tree.mnt) == []


def test_attributes_of_the_root_are_mount_options(mount: MountFactory) -> None:
    tree = mount(root_mode="750", root_owner="12:34")
    status = tree.mnt.stat()
    assert stat.S_IMODE(status.st_mode) == 0o750
    assert (status.st_uid, status.st_gid) == (12, 34)
    with answers(errno.EPERM):
        tree.mnt.chmod(0o777)
    with answers(errno.EPERM):
        os.chown(tree.mnt, 1, 1)
    with answers(errno.EPERM):
        os.utime(tree.mnt, ns=(1, 1))
    with answers(errno.EPERM):
        os.setxattr(tree.mnt, "user.x", b"1")


def test_the_root_changes_its_time_with_its_volumes(mount: MountFactory) -> None:
    tree = mount(cache="never")
    before = tree.mnt.stat().st_mtime_ns
    (tree.mnt / "vol").mkdir()
    assert tree.mnt.stat().st_mtime_ns > before


def test_statfs_is_of_the_scope(tree: Mounted, volume: Path) -> None:
    ours, theirs = os.statvfs(volume), os.statvfs(tree.scope)
    for field in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
        assert getattr(ours, field) == getattr(theirs, field)


def test_a_read_only_mount(mount: MountFactory) -> None:
    tree = mount()
    (tree.mnt / "vol").mkdir()
    (tree.mnt / "vol" / "file").write_text("data")
    tree.stop()
    again = mount(scope=tree.scope, ro=True)
    assert (again.mnt / "vol" / "file").read_text() == "data"
    for change in (
        lambda: (again.mnt / "vol").rmdir(),
        lambda: (again.mnt / "new").mkdir(),
        lambda: (again.mnt / "vol" / "file").write_text("x"),
    ):
        with answers(errno.EROFS):
            change()


# -- extended attributes that volfs answers


def test_volume_attributes(tree: Mounted, volume: Path) -> None:
    assert os.getxattr(volume, "volfs.name") == b"vol"
    assert os.getxattr(volume, "volfs.driver") == b"local"
    assert os.getxattr(volume, "volfs.created_at").startswith(b"20")
    assert os.getxattr(volume, "volfs.users") == b""
    os.setxattr(volume, "volfs.label.team", b"web")
    assert os.getxattr(volume, "volfs.label.team") == b"web"
    assert "web" in (tree.scope / "volumes" / "vol" / "volume.json").read_text()
    assert os.listxattr(volume) == []
    with answers(errno.EEXIST):
        os.setxattr(volume, "volfs.label.team", b"x", os.XATTR_CREATE)
    with answers(errno.ENODATA):
        os.setxattr(volume, "volfs.label.other", b"x", os.XATTR_REPLACE)
    os.removexattr(volume, "volfs.label.team")
    with answers(errno.ENODATA):
        os.getxattr(volume, "volfs.label.team")
    with answers(errno.ENODATA):
        os.removexattr(volume, "volfs.label.team")
    with answers(errno.EPERM):
        os.setxattr(volume, "volfs.driver", b"x")
    with answers(errno.EINVAL):
        os.setxattr(volume, "volfs.label.", b"x")
    with answers(errno.EINVAL):
        os.setxattr(volume, "volfs.label.x", b"\xff")
    (volume / "dir").mkdir()
    with answers(errno.ENODATA):
        os.getxattr(volume / "dir", "volfs.name")
    os.setxattr(volume, "user.plain", b"1")
    assert os.getxattr(tree.data("vol"), "user.plain") == b"1"


def test_labels_are_set_by_whom_the_volume_belongs_to(mount: MountFactory) -> None:
    tree = mount(root_mode="1777")
    run_as(lambda: os.mkdir(tree.mnt / "mine"), 1000)
    run_as(lambda: os.setxattr(tree.mnt / "mine", "volfs.label.a", b"b"), 1000)
    with answers(errno.EACCES):
        run_as(lambda: os.setxattr(tree.mnt / "mine", "volfs.label.a", b"c"), NOBODY)
    assert os.getxattr(tree.mnt / "mine", "volfs.label.a") == b"b"


def test_a_removed_directory_lists_as_empty(volume: Path) -> None:
    (volume / "dir").mkdir()
    (volume / "dir" / "file").touch()
    fd = os.open(volume / "dir", os.O_RDONLY)
    (volume / "dir" / "file").unlink()
    (volume / "dir").rmdir()
    try:
        assert os.listdir(fd) == []
    finally:
        os.close(fd)


def test_an_append_only_file_is_appended_to(tree: Mounted, volume: Path) -> None:
    log = volume / "log"
    log.write_text("one\n")
    if subprocess.run(["chattr", "+a", tree.data("vol") / "log"], check=False).returncode:
        pytest.skip("the filesystem of /tmp has no append-only files")
    try:
        with answers(errno.EPERM):
            os.open(log, os.O_WRONLY)
        with log.open("a") as file:
            file.write("two\n")
        assert log.read_text() == "one\ntwo\n"
    finally:
        subprocess.run(["chattr", "-a", tree.data("vol") / "log"], check=True)
