"""Opening a scope: what is made, what is refused and what is said then."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import NOBODY, in_namespace, needs_root, run_as
from tests.local.scopes import contents, write
from volfs.errors import ScopeError, VolumeNotFoundError
from volfs.linux import syscalls
from volfs.local import LocalDriver

MS_REMOUNT = 32
MS_BIND = 4096


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refusal(scope: str | Path) -> str:
    """Return why a scope is refused, "" if it is not."""
    try:
        LocalDriver(scope).close()
    except ScopeError as error:
        return str(error)
    return ""


def mount_tmpfs(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    syscalls.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, b"size=8m,nr_inodes=100k")


def test_all_that_is_missing_is_made_for_its_owner_only(scope: Path) -> None:
    umask = os.umask(0)
    try:
        driver = LocalDriver(scope / "a" / "b")
    finally:
        os.umask(umask)
    driver.close()
    for path in ("a/b", "a/b/volumes", "a/b/trash"):
        assert mode(scope / path) == 0o700


def test_what_is_there_keeps_its_mode(scope: Path) -> None:
    (scope / "volumes").mkdir(parents=True)
    scope.chmod(0o711)
    (scope / "volumes").chmod(0o701)
    LocalDriver(scope).close()
    assert mode(scope) == 0o711
    assert mode(scope / "volumes") == 0o701


def test_the_scope_is_told_by_its_real_path(scope: Path) -> None:
    link = scope.parent / "link"
    link.symlink_to(scope)
    scope.mkdir()
    driver = LocalDriver(link)
    assert driver.scope == str(scope)
    assert driver.create("vol").path == str(scope / "volumes" / "vol" / "_data")
    driver.close()


def test_a_relative_scope_means_the_same_after_chdir(
    scope: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scope.parent)
    driver = LocalDriver("scope")
    monkeypatch.chdir("/")
    assert os.path.isdir(driver.create("vol").path)
    driver.close()


@pytest.mark.parametrize("what", ["", "volumes", "trash"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_else_than_a_directory_is_refused(scope: Path, what: str, kind: str) -> None:
    if what:
        scope.mkdir()
    target = scope / what
    if kind == "file":
        target.write_text("")
    else:
        target.symlink_to("/nonexistent-place" if what else "/dev/null")
    place = "/dev/null" if (what, kind) == ("", "link") else target
    assert f"{place}: not a directory" in refusal(scope)


def test_without_permission_it_says_what_to_do(workspace: Path, scope: Path) -> None:
    LocalDriver(scope).close()
    assert "run this as its owner or as root" in run_as(lambda: refusal(scope), NOBODY)
    missing = workspace / "new"
    assert "no permission" in run_as(lambda: refusal(missing), NOBODY)


@needs_root
def test_a_user_can_have_a_scope_below_what_he_cannot_list(workspace: Path) -> None:
    homes = workspace / "homes"
    home = homes / "me"
    home.mkdir(parents=True)
    homes.chmod(0o711)
    os.chown(home, NOBODY, NOBODY)
    assert run_as(lambda: refusal(home / "scope"), NOBODY) == ""
    assert run_as(lambda: refusal(home / "scope"), NOBODY) == ""


@pytest.mark.parametrize("part", ["volumes", "trash"])
def test_parts_on_another_filesystem_are_refused(scope: Path, part: str) -> None:
    def attempt() -> str:
        mount_tmpfs(scope / part)
        return refusal(scope)

    assert f"{scope}/{part} is on another filesystem" in in_namespace(attempt)


def test_parts_on_another_mount_are_refused_too(scope: Path) -> None:
    """rename(2) answers EXDEV between two mounts of one filesystem."""

    def attempt() -> str:
        elsewhere = scope.parent / "elsewhere"
        for path in (elsewhere, scope / "volumes"):
            path.mkdir(parents=True)
        syscalls.mount(os.fsencode(elsewhere), os.fsencode(scope / "volumes"), b"", MS_BIND, b"")
        return refusal(scope)

    assert "is on another filesystem" in in_namespace(attempt)


def test_a_whole_scope_on_a_filesystem_of_its_own_is_fine(scope: Path) -> None:
    def attempt() -> list[str]:
        mount_tmpfs(scope)
        driver = LocalDriver(scope)
        driver.remove(driver.create("vol"))
        driver.restore("vol")
        return driver.names()

    assert in_namespace(attempt) == ["vol"]


def test_a_read_only_scope_can_be_read_and_answers_erofs_to_the_rest(scope: Path) -> None:
    def attempt() -> tuple[dict[str, str], int, list[str | None]]:
        mount_tmpfs(scope)
        driver = LocalDriver(scope)
        write(driver.create("vol").path, "kept")
        write(driver.create("gone").path, "old")
        driver.remove(driver.get("gone"))
        driver.close()
        syscalls.mount(b"", os.fsencode(scope), b"", MS_REMOUNT | syscalls.MS_RDONLY, b"")
        driver = LocalDriver(scope)
        volume = driver.get("vol")
        driver.housekeep(lambda: False)
        answers = [
            errno_of(lambda: driver.create("new")),
            errno_of(lambda: driver.remove(volume)),
            errno_of(lambda: driver.rename(volume, "new")),
            errno_of(lambda: driver.set_labels(volume, {})),
            errno_of(lambda: driver.restore("gone")),
            errno_of(lambda: driver.create("vol")),
        ]
        return contents(driver), len(driver.trash.list()), answers

    listed, removed, answers = in_namespace(attempt)
    assert listed == {"vol": "kept"}
    assert removed == 1
    assert answers == ["EROFS"] * 5 + [None]


def test_a_read_only_scope_without_a_trash_can_be_read(scope: Path) -> None:
    def attempt() -> tuple[dict[str, str], int, str | None, str]:
        mount_tmpfs(scope)
        driver = LocalDriver(scope)
        write(driver.create("vol").path, "kept")
        driver.close()
        os.rmdir(scope / "trash")
        syscalls.mount(b"", os.fsencode(scope), b"", MS_REMOUNT | syscalls.MS_RDONLY, b"")
        driver = LocalDriver(scope)
        driver.housekeep(lambda: False)
        removal = errno_of(lambda: driver.remove(driver.get("vol")))
        return contents(driver), len(driver.trash.list()), removal, refusal(scope / "new")

    listed, removed, removal, other = in_namespace(attempt)
    assert (listed, removed, removal) == ({"vol": "kept"}, 0, "EROFS")
    assert "read-only" in other


def test_what_an_overlay_cannot_move_is_refused_with_the_reason(scope: Path) -> None:
    def attempt() -> tuple[str, list[str]]:
        layers = scope.parent / "layers"
        mount_tmpfs(layers)
        for layer in ("lower", "upper", "work"):
            (layers / layer).mkdir()
        LocalDriver(layers / "lower").create("old")
        scope.mkdir()
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        options += ",redirect_dir=off"
        syscalls.mount(b"overlay", os.fsencode(scope), b"overlay", 0, options.encode())
        driver = LocalDriver(scope)
        driver.remove(driver.create("new"))
        try:
            driver.remove(driver.get("old"))
        except ScopeError as error:
            return str(error), driver.names()
        return "", driver.names()

    refusal_text, names = in_namespace(attempt)
    assert "redirect_dir=on" in refusal_text
    assert names == ["old"]


def errno_of(action: Callable[[], object]) -> str | None:
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def test_deleted_directories_of_a_scope_are_made_again(driver: LocalDriver, scope: Path) -> None:
    driver.remove(driver.create("vol"))
    shutil.rmtree(scope / "trash")
    assert driver.trash.list() == []
    driver.remove(driver.create("vol"))
    assert driver.restore("vol").name == "vol"
    shutil.rmtree(scope / "volumes")
    assert driver.names() == []
    with pytest.raises(VolumeNotFoundError):
        driver.get("vol")
    assert os.path.isdir(driver.create("vol").path)
    assert driver.names() == ["vol"]


def test_a_deleted_scope_is_said_to_be_deleted(scope: Path) -> None:
    driver = LocalDriver(scope)
    shutil.rmtree(scope)
    with pytest.raises(ScopeError, match="was deleted"):
        driver.create("vol")
    driver.close()
