"""What writing without privileges cannot do: keep setuid or capabilities.

With passthrough the kernel writes for the caller with credentials that the daemon lends it, so
this is where too much could be lent.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.children import MEMBERS, OTHER, STRANGERS, USER, run_as
from tests.conftest import Mounted, MountFactory
from tests.mount.capabilities import CAPABILITY, capability
from tests.mount.changing import CHANGES, CHANGES_BY_NAME, append_to, change
from tests.mount.comparing import Pair, outcome, owned
from tests.mount.conftest import make_pair
from tests.mount.test_reading_and_writing import content
from volfs.linux import syscalls

# -- by name

SPECIAL_MODES = (0o4777, 0o2777, 0o6777, 0o4666, 0o1777)


def change_all(top: Path) -> list[str]:
    told = []
    for (name, how), mode in itertools.product(CHANGES_BY_NAME.items(), SPECIAL_MODES):
        path = top / f"{name} {mode:o}"
        done = outcome(how, path)
        told.append(f"{path.name}: {done} {owned(path)}")
    return told


@pytest.mark.no_data
@pytest.mark.parametrize(
    ("owner", "group", "uid", "groups"),
    [
        (USER, USER, USER, []),
        (USER, USER, USER, [MEMBERS]),
        (USER, MEMBERS, USER, [MEMBERS]),
        (USER, STRANGERS, USER, []),
        (OTHER, OTHER, USER, []),
        (OTHER, MEMBERS, USER, [MEMBERS]),
    ],
    ids=["owner", "owner in groups", "group's owner", "owner in no group", "other", "member"],
)
def test_privileged_bits_are_cleared_as_on_the_disk(
    pair: Pair, owner: int, group: int, uid: int, groups: list[int]
) -> None:
    def operation(top: Path) -> tuple[list[str], list[tuple[str, int, int]]]:
        top.chmod(0o777)
        for name, mode in itertools.product(CHANGES_BY_NAME, SPECIAL_MODES):
            path = top / f"{name} {mode:o}"
            path.write_bytes(b"content")
            os.chown(path, owner, group)
            path.chmod(mode)
        told = run_as(partial(change_all, top), uid, groups=groups)
        return told, [owned(path) for path in sorted(pair.behind(top).iterdir())]

    pair.same(operation)


@pytest.mark.no_data
@pytest.mark.needs_tap
def test_root_keeps_privileged_bits(pair: Pair) -> None:
    """Whoever has CAP_FSETID does, whosever the file is."""

    def operation(top: Path) -> tuple[list[str], list[tuple[str, int, int]]]:
        for name, mode in itertools.product(CHANGES_BY_NAME, (*SPECIAL_MODES, 0o2767, 0o6644)):
            path = top / f"{name} {mode:o}"
            path.write_bytes(b"content")
            os.chown(path, USER, MEMBERS)
            path.chmod(mode)
        told = change_all(top)
        return told, [owned(path) for path in sorted(pair.behind(top).iterdir())]

    pair.same(operation)


@pytest.mark.no_data
def test_at_the_plain_level_root_clears_privileged_bits_by_writing(mount: MountFactory) -> None:
    """A known difference: a request does not say there whether its sender may leave them."""
    tree = mount(no_tap=True)
    (tree.mnt / "v").mkdir()
    path = tree.mnt / "v/f"
    path.write_bytes(b"content")
    for how, left in ((append_to, 0o755), (lambda path: path.chmod(0o6751), 0o6751)):
        path.chmod(0o6755)
        how(path)
        assert stat.S_IMODE(os.stat(tree.data("v") / "f").st_mode) == left
        path.open("rb").close()


@pytest.mark.no_data
def test_setgid_without_group_execute_is_cleared_for_members_too(pair: Pair) -> None:
    """A known difference, on the safe side: natively a member of the group keeps the bit.

    It has no meaning since mandatory locking left the kernel; the daemon is no member.
    """

    def operation(top: Path) -> list[str]:
        told = []
        for name, how in CHANGES_BY_NAME.items():
            path = top / name
            path.write_bytes(b"content")
            os.chown(path, USER, USER)
            path.chmod(0o2767)
            run_as(partial(how, path), groups=[MEMBERS])
            told.append(f"{name} {owned(path)}")
        return told

    found, expected = operation(pair.mounted), operation(pair.native)
    for mounted, native in zip(found, expected, strict=True):
        assert mounted in (native, native.replace("0o102767", "0o100767"))


# -- through descriptors

MODES = (0o4777, 0o2777, 0o6777, 0o6776, 0o4666)


def with_mode(path: Path, mode: int, owner: int = 0) -> Path:
    """A file at ``path`` that has it."""
    path.write_bytes(content(5000, 2))
    os.chown(path, owner, owner)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("how", CHANGES)
def test_setuid_and_setgid_go_at_once_with_any_change(remembering: Pair, how: str) -> None:
    """Looked at before and right after, by the writer and by another, in the tree and behind."""

    def operation(top: Path) -> list[object]:
        top.chmod(0o777)
        source = top / "source"
        source.write_bytes(content(9000))
        told: list[object] = []
        for owner, mode in itertools.product((0, USER, OTHER), MODES):
            path = with_mode(top / f"{owner} {mode:o}", mode, owner)
            assert owned(path)[0] == oct(stat.S_IFREG | mode)

            def work(path: Path = path) -> tuple[object, object]:
                return outcome(change, path, source, CHANGES[how]), owned(path)

            told += [run_as(work), owned(path), owned(remembering.behind(path))]
        return told

    told = remembering.same(operation)
    assert (None, (oct(stat.S_IFREG | 0o777), OTHER, OTHER)) in told


@pytest.mark.parametrize("how", CHANGES)
def test_setuid_goes_though_the_file_was_opened_before_it_came(remembering: Pair, how: str) -> None:
    """The descriptor is served as was right when it was opened, when there was nothing to clear."""

    def operation(top: Path) -> list[object]:
        source = top / "source"
        source.write_bytes(content(9000))
        told: list[object] = []
        for mode in MODES:
            path = top / f"{mode:o}"
            path.write_bytes(content(5000, 2))
            path.chmod(0o666)
            with path.open("r+b", buffering=0) as file, source.open("rb", buffering=0) as reader:
                path.chmod(mode)
                assert owned(path)[0] == oct(stat.S_IFREG | mode)

                def work() -> object:
                    return outcome(CHANGES[how], file.fileno(), reader.fileno())

                told += [run_as(work), owned(path)]
            told.append(owned(remembering.behind(path)))
        return told

    remembering.same(operation)


@pytest.mark.needs_tap
@pytest.mark.parametrize("how", CHANGES)
def test_root_keeps_setuid_and_setgid_whatever_it_changes(remembering: Pair, how: str) -> None:
    """As for others, in the reverse: the kernel says that the writer may leave them."""

    def operation(top: Path) -> list[object]:
        source = top / "source"
        source.write_bytes(content(9000))
        told: list[object] = []
        for owner, mode in itertools.product((0, USER), (*MODES, 0o2767)):
            path = with_mode(top / f"{owner} {mode:o}", mode, owner)
            told += [outcome(change, path, source, CHANGES[how]), owned(path)]
            told.append(owned(remembering.behind(path)))
        return told

    told = remembering.same(operation)
    assert (oct(stat.S_IFREG | 0o6777), 0, 0) in told


@pytest.mark.needs_tap
def test_root_keeps_setuid_and_setgid_with_fallocate(remembering: Pair) -> None:
    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for mode in MODES:
            path = with_mode(top / f"{mode:o}", mode)
            with path.open("r+b") as file:
                told.append(outcome(syscalls.fallocate, file.fileno(), 0, 100, 20_000))
            told += [owned(path), path.stat().st_size]
        return told

    remembering.same(operation)


@pytest.mark.needs_tap
@pytest.mark.parametrize("how", CHANGES)
def test_root_without_the_capability_does_not(remembering: Pair, how: str) -> None:
    def operation(top: Path) -> list[object]:
        source = top / "source"
        source.write_bytes(content(9000))
        told: list[object] = []
        for mode in MODES:
            path = with_mode(top / f"{mode:o}", mode)

            def work(path: Path = path) -> object:
                effective, permitted, inheritable = syscalls.capget()
                mask = ~(1 << syscalls.CAP_FSETID)
                syscalls.capset(effective & mask, permitted & mask, inheritable & mask)
                return outcome(change, path, source, CHANGES[how])

            told += [run_as(work, 0), owned(path)]
        return told

    remembering.same(operation)


@pytest.mark.needs_tap
@pytest.mark.parametrize("mode", [0, 1, 3, 0x10 | 1], ids=["", "keep size", "punch", "zero"])
def test_setuid_and_capabilities_go_with_fallocate(remembering: Pair, mode: int) -> None:
    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for bits in MODES:
            path = top / f"{bits:o}"
            path.write_bytes(content(9000))
            os.chown(path, OTHER, OTHER)
            os.setxattr(path, "security.capability", CAPABILITY)
            path.chmod(bits)

            def work(path: Path = path) -> tuple[object, object]:
                with path.open("r+b") as file:
                    done = outcome(syscalls.fallocate, file.fileno(), mode, 100, 20_000)
                return done, owned(path)

            told += [run_as(work), owned(path), capability(path), path.stat().st_size]
            told.append(owned(remembering.behind(path)))
        return told

    remembering.same(operation)


# -- the attack


@pytest.fixture
def programs(trees: Mounted) -> Pair:
    """A volume with two programs: "id", and a setuid "target" that everybody may write."""
    pair = make_pair(trees)
    for top in (pair.mounted, pair.native):
        top.chmod(0o777)
        shutil.copy(shutil.which("id") or "/usr/bin/id", top / "id")
        shutil.copy(shutil.which("true") or "/bin/true", top / "target")
    return pair


def user_of(program: Path) -> int:
    """Who the program, a copy of id(1), is when our user runs it."""
    command = [str(program), "-u"]
    return int(run_as(lambda: subprocess.run(command, check=True, stdout=-1).stdout))


@pytest.mark.parametrize("opened", ["before", "after"])
@pytest.mark.parametrize("how", ["write", "send", "splice", "copy_range", "truncate_to_nothing"])
def test_a_setuid_program_that_a_user_replaced_runs_as_the_user(
    programs: Pair, how: str, opened: str
) -> None:
    """At once, and without anybody having looked at the mode in between."""

    def operation(top: Path) -> int:
        target = top / "target"
        target.chmod(0o777)
        if opened == "after":
            target.chmod(0o4777)
        with target.open("r+b", buffering=0) as file, (top / "id").open("rb") as source:
            target.chmod(0o4777)
            run_as(partial(CHANGES[how], file.fileno(), source.fileno()))
        return user_of(target)

    assert programs.same(operation) == USER


def test_a_setuid_program_runs_as_its_owner_where_that_is_allowed(
    programs: Pair, trees: Mounted
) -> None:
    (programs.mounted / "id").chmod(0o4755)
    with_suid = not os.statvfs(trees.mnt).f_flag & os.ST_NOSUID
    assert user_of(programs.mounted / "id") == (0 if with_suid else USER)


def test_members_of_the_group_write_setgid_files(remembering: Pair) -> None:
    """As in the directory of a project: setgid of the directory stays, that of a file goes."""

    def operation(top: Path) -> list[object]:
        os.chown(top, USER, MEMBERS)
        top.chmod(0o2775)

        def work() -> None:
            (top / "f").write_bytes(b"content")
            (top / "f").chmod(0o2775)
            (top / "f").open("ab").write(b"more")

        run_as(work, OTHER, groups=[MEMBERS])
        return [owned(top / "f"), owned(top)]

    remembering.same(operation)
