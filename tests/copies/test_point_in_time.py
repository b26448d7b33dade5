"""Copies are of one point in time, or known not to be."""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.children import Child
from tests.copies.copying import KINDS, copy, descriptors
from tests.copies.trees import make_chain, make_tree, seen
from tests.threads import again_and_again
from volfs.copies.marks import Watch
from volfs.linux import syscalls

pytestmark = pytest.mark.any_level


def change_something(top: Path, chance: random.Random, number: int) -> None:
    """Make, replace, move, exchange or link whatever comes up in a tree of few names."""
    directories = [top, *(path for path in top.rglob("*") if path.is_dir())]
    first, second = (chance.choice(directories) / chance.choice("abc") for _ in "12")
    with suppress(OSError):  # not everything is possible everywhere
        match chance.randrange(9):
            case 0 | 1:
                first.mkdir()
            case 2:
                first.write_text(f"{number}")
            case 3:
                first.rename(second)
            case 4 | 5:
                names = os.fsencode(first), os.fsencode(second)
                syscalls.renameat2(-100, names[0], -100, names[1], syscalls.RENAME_EXCHANGE)
            case 6:
                os.link(first, second, follow_symlinks=False)
            case 7:
                first.rmdir() if first.is_dir() else first.unlink()
            case 8:
                first.symlink_to(f"{number}")


class TestPointInTime:
    def test_what_changes_meanwhile_is_copied_again(self, source: Path) -> None:
        make_tree(source)
        (source / "late").write_text("old")
        changed: list[int] = []

        def change(count: int) -> None:
            """Something of each kind of change, once something was copied."""
            if changed:
                return
            changed.append(count)
            (source / "late").write_text("new")
            (source / "text").write_text("HELLO")
            (source / "added").mkdir()
            (source / "added" / "file").write_text("added")
            (source / "fifo").unlink()
            (source / "dir" / "deeper").rename(source / "moved")
            (source / "empty").chmod(0o640)
            (source / "sparse").unlink()
            (source / "sparse").mkdir()
            os.link(source / "hole", source / "hole too")
            os.setxattr(source / "dir", "user.note", b"changed")

        report = copy(source, source.with_name("target"), on_progress=change)
        assert changed
        assert report.is_point_in_time
        assert seen(source.with_name("target")) == seen(source)

    def test_a_change_in_the_same_tick_with_the_same_size(self, source: Path) -> None:
        """As a program does that keeps the modification time."""
        (source / "file").write_text("old")
        status = (source / "file").stat()
        done: list[int] = []

        def change(count: int) -> None:
            if not done:
                done.append(count)
                (source / "file").write_text("new")
                os.utime(source / "file", ns=(status.st_atime_ns, status.st_mtime_ns))

        report = copy(source, source.with_name("target"), on_progress=change)
        assert report.is_point_in_time
        assert (source.with_name("target") / "file").read_text() == "new"

    def test_what_never_rests_is_told(self, source: Path) -> None:
        for number in range(10):
            (source / f"still{number}").write_text("still")
        (source / "dir").mkdir()
        (source / "dir" / "busy").write_bytes(bytes(8 << 20))
        number = 0

        def change(count: int) -> None:
            nonlocal number
            number += 1
            with (source / "dir" / "busy").open("r+b") as file:
                file.write(b"%d" % number)

        report = copy(source, source.with_name("target"), on_progress=change)
        assert not report.is_point_in_time
        assert (report.changed, report.examples) == (1, ("dir/busy",))

    @pytest.mark.parametrize("kind", KINDS)
    def test_two_files_that_a_writer_keeps_equal(
        self, filesystems: Callable[[str], Path], kind: str, tmp_path: Path
    ) -> None:
        """A writer changes one file, then the other, now and then: a copy that is said to be
        of one point in time has them at most one step apart, and in that order."""
        source = filesystems(kind) / tmp_path.name / "source"
        source.mkdir(parents=True)
        for name in ("a", "b"):
            (source / name).write_text("0")
        for number in range(300):
            (source / f"other{number}").write_text("x")

        def write(number: int) -> None:
            for name in ("a", "b"):
                (source / f".{name}").write_text(f"{number + 1}")
                (source / f".{name}").rename(source / name)

        with again_and_again(write, pause=0.04):
            for number in range(8):
                target = source.with_name(f"target{number}")
                report = copy(source, target)
                a, b = (int((target / name).read_text()) for name in ("a", "b"))
                if report.is_point_in_time:
                    assert a - b in (0, 1)

    def test_links_put_in_the_place_of_directories_lead_nowhere(self, source: Path) -> None:
        outside = source.with_name("outside")
        outside.mkdir()
        (outside / "secret").write_text("secret")
        for number in range(40):
            (source / f"dir{number}").mkdir()
            (source / f"dir{number}" / "file").write_text("x")
        (source / "link").symlink_to(outside)

        def swap() -> None:
            fd = os.open(source, os.O_RDONLY)
            while True:
                for number in range(40):
                    name = b"dir%d" % number
                    syscalls.renameat2(fd, name, fd, b"link", syscalls.RENAME_EXCHANGE)

        with Child(swap):
            for number in range(3):
                target = source.with_name(f"target{number}")
                report = copy(source, target)
                assert not report.is_point_in_time
                assert not list(target.rglob("secret"))

    def test_a_directory_taken_out_of_the_tree_does_not_lead_out(self, source: Path) -> None:
        """Deep below it, the way back up is another one than the way down."""
        outside = source.with_name("outside")
        make_chain(source, 60)
        for number in range(8):
            (outside / f"name{number}").mkdir(parents=True)
            (outside / f"name{number}" / "secret").write_text("secret")
            (source / f"d/d/d/name{number}").mkdir()
        target = source.with_name("target")
        met = 0
        leaked: list[Path] = []

        def stopping() -> bool:
            nonlocal met
            met += 1
            if met == 120:  # about 50 levels deep
                (source / "d/d/d/d").rename(outside / "d")
            if met > 120:
                leaked.extend(target.glob("d/d/d/*/secret"))
            return False

        report = copy(source, target, stopping=stopping)
        assert (outside / "d").is_dir()
        assert leaked == []
        assert report.is_point_in_time
        assert seen(target) == seen(source)

    def test_directories_exchanged_to_and_fro(self, source: Path) -> None:
        """Inode numbers of what is replaced in the copy must not come to mean something else."""
        for name in ("a", "b"):
            (source / name).mkdir()
            (source / name / "file").write_text(name)
        time.sleep(0.1)
        count = 0

        def change(_: int) -> None:
            nonlocal count
            count += 1
            if count in (2, 3):  # when both were copied, and when one of them was once more
                with descriptors(source) as (fd,):
                    syscalls.renameat2(fd, b"a", fd, b"b", syscalls.RENAME_EXCHANGE)

        target = source.with_name("target")
        report = copy(source, target, on_progress=change)
        assert report.is_point_in_time
        assert seen(target) == seen(source)

    @pytest.mark.parametrize("seed", range(12))
    def test_after_any_changes_it_is_one_of_the_states_that_there_were(
        self, source: Path, seed: int
    ) -> None:
        chance = random.Random(seed)
        for number in range(6):
            change_something(source, chance, number)
        time.sleep(0.05)
        left = iter(range(6, chance.choice((10, 60, 200))))
        states = [seen(source)]

        def stopping() -> bool:
            if chance.random() < 0.3 and (number := next(left, None)) is not None:
                change_something(source, chance, number)
                states.append(seen(source))
            return False

        target = source.with_name("target")
        report = copy(source, target, stopping=stopping)
        assert report.is_point_in_time or len(states) > 5
        if report.is_point_in_time:
            assert seen(target) in states

    def test_written_through_mappings(self, source: Path) -> None:
        """A page that is dirty can be written without a change of the file's times."""
        step = 0

        def change(count: int) -> None:
            nonlocal step
            step += 1
            if step < 3:  # one of the two was copied, or both
                for mapping in mappings:
                    mapping[0:1] = b"%d" % step
                time.sleep(0.1)  # then that change is none of this tick

        for name in ("a", "b"):
            (source / name).write_bytes(bytes(1 << 20))
        time.sleep(0.1)
        with ExitStack() as stack:
            files = [stack.enter_context((source / name).open("r+b")) for name in ("a", "b")]
            mappings = [stack.enter_context(mmap.mmap(file.fileno(), 0)) for file in files]
            report = copy(source, source.with_name("target"), on_progress=change)
        assert report.is_point_in_time
        assert [(source.with_name("target") / name).read_bytes()[:1] for name in "ab"] == [b"2"] * 2

    def test_dirty_pages_are_waited_for(
        self, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those that are on their way to the disk, too: a page may be dirtied again meanwhile.

        A slow disk shows it by the data; here it is told by what the kernel is asked.
        """
        wait = 1 | 2 | 4  # WAIT_BEFORE, WRITE, WAIT_AFTER in sync_file_range(2)
        settled: set[int] = set()
        copied: list[bool] = []
        real, real_copy = syscalls._sync_file_range, os.copy_file_range

        def sync_file_range(fd: int, offset: int, count: int, flags: int) -> int:
            if (offset, count, flags) == (0, 0, wait):
                settled.add(os.fstat(fd).st_ino)
            done: int = real(fd, offset, count, flags)
            return done

        def copy_file_range(src: int, dst: int, *more: int) -> int:
            copied.append(os.fstat(src).st_ino in settled)
            return real_copy(src, dst, *more)

        monkeypatch.setattr(syscalls, "_sync_file_range", sync_file_range)
        monkeypatch.setattr(os, "copy_file_range", copy_file_range)
        for name in ("a", "b"):
            (source / name).write_bytes(bytes(1 << 16))
        copy(source, source.with_name("target"))
        assert copied and all(copied)

    def test_what_was_changed_just_now_is_not_trusted(self, source: Path) -> None:
        """Its next change may have the same time, where times are those of clock ticks."""
        (source / "file").write_text("x")
        time.sleep(0.1)
        assert copy(source, source.with_name("later")).copied == 1
        # On a busy machine a copy can begin too late for that, but not each time.
        for attempt in range(50):
            (source / "file").write_text(str(attempt))
            if copy(source, source.with_name(f"at once {attempt}")).copied == 2:
                return
        pytest.fail("a change of just now was trusted 50 times")

    def test_a_watch_tells_what_changed(self, source: Path) -> None:
        make_tree(source)
        with descriptors(source) as (top,):
            watch = Watch(top)
            watch.begin()
            assert watch.end() == (0, ())
            (source / "text").write_text("other")
            (source / "dir" / "new").mkdir()
            count, names = watch.end()
            assert (count, sorted(names)) == (3, ["dir", "dir/new", "text"])
