"""Everyday programs in a volume: archivers, copiers, compilers, editors, watchers."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.programs import end, require, require_root, run
from tests.clients.volumes import VolumeDir
from tests.conftest import Mounted, MountFactory, volfs, wait_for

# Contents and names that tell a careless copy: all kinds of files, links that share an inode,
# links that lead nowhere, owners, special bits, extended attributes, ACLs, holes, old times.
MAKE_SAMPLE = r"""
mkdir -p a/b/c empty 'with space' "$(printf 'new\nline')"
i=0; while [ $i -lt 60 ]; do echo "file $i" > "a/b/file$i"; i=$((i + 1)); done
head -c 1000003 /dev/urandom > a/big
truncate -s 5M a/sparse; echo end >> a/sparse
: > empty-file
ln a/big a/b/hard; ln a/big 'with space/hard'
ln -s ../big a/b/soft; ln -s /nonexistent/target dangling; ln -s c a/b/to-directory
mkfifo fifo
printf 'caf\303\251 \377' > "$(printf 'caf\303\251-\377')"
printf '#!/bin/sh\necho it runs\n' > script
chmod 755 script; chmod 600 a/b/file1; chmod 4711 a/b/file2; chmod 2770 a/b/c; chmod 1777 empty
chmod 000 a/b/file3
chown 1000:2000 a/b/file4 empty; chown -h 1000:2000 dangling; chmod 1777 empty
setfattr -n user.note -v 'a note' a/big
setfattr -n user.binary -v 0x00ff00 a/b/c
setfattr -n trusted.only-root -v secret script
setfacl -m u:1000:rwx,g:2000:r-x,m::rwx a/b/file5
setfacl -d -m u:1000:rw-,o::--- a/b/c
touch -d '2001-02-03 04:05:06.123456789 UTC' a/b/file6
touch -h -d '2002-02-03 04:05:06.987654321 UTC' dangling
touch -d '1999-12-31 23:59:59.5 UTC' a/b/c
"""


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory outside of any volume with some of everything."""
    require("setfacl", "setfattr")
    require_root()
    directory = tmp_path_factory.mktemp("sample") / "sample"
    directory.mkdir()
    run("sh", "-euc", MAKE_SAMPLE, cwd=directory)
    return directory


def manifest(directory: Path) -> dict[str, object]:
    """Everything that a faithful copy keeps: by relative path, what is there."""
    found: dict[str, object] = {}
    first: dict[int, str] = {}
    for path in sorted([directory, *directory.rglob("*")]):
        name = str(path.relative_to(directory))
        status = path.lstat()
        content = ""
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        attributes = os.listxattr(path, follow_symlinks=False)
        found[name] = {
            "type": stat.S_IFMT(status.st_mode),
            "mode": stat.S_IMODE(status.st_mode),
            "owner": (status.st_uid, status.st_gid),
            "size": 0 if stat.S_ISDIR(status.st_mode) else status.st_size,
            "time": status.st_mtime_ns,
            "same file as": first.setdefault(status.st_ino, name),
            "content": content,
            "attributes": {
                name: os.getxattr(path, name, follow_symlinks=False) for name in attributes
            },
        }
    return found


def assert_same(copy: VolumeDir, name: str, sample: Path) -> None:
    """The copy equals the sample, seen through the tree and behind the mount."""
    wanted = manifest(sample)
    assert len(wanted) > 70
    assert manifest(copy.path / name) == wanted
    assert manifest(copy.data / name) == wanted


class TestCopies:
    def test_tar_into_and_out_of_a_volume(
        self, volume: VolumeDir, sample: Path, tmp_path: Path
    ) -> None:
        words = ["tar", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"]
        run(*words, "-cf", tmp_path / "in.tar", "-C", sample.parent, "sample")
        run(*words, "-xpf", tmp_path / "in.tar", "-C", volume.path)
        assert_same(volume, "sample", sample)
        run(*words, "-cf", volume.path / "out.tar", "-C", volume.path, "sample")
        run(*words, "-xpf", volume.path / "out.tar", "-C", tmp_path)
        assert manifest(tmp_path / "sample") == manifest(sample)

    def test_tar_takes_what_is_new_where_it_is_told_not_to_look_at_the_device(
        self, tree: Mounted, volume: VolumeDir, mount: MountFactory, tmp_path: Path
    ) -> None:
        """A known difference: a tree that is mounted again can have another device number."""
        (volume.path / "old").touch()

        def taken(tree: Mounted, *words: str) -> set[str]:
            """Which files are in the next archive; the notes of the last one stay as they are."""
            notes = tmp_path / "notes"
            if (tmp_path / "first").exists():
                shutil.copyfile(tmp_path / "first", notes)
            words = ("--listed-incremental", str(notes), *words, "-C", str(tree.mnt))
            found = run("tar", *words, "-cf", "/dev/null", "-v", "vol").split()
            return {name for name in found if name in ("vol/old", "vol/new")}

        assert taken(tree) == {"vol/old"}
        (tmp_path / "notes").rename(tmp_path / "first")
        (volume.path / "new").touch()
        assert taken(tree) == {"vol/new"}
        again = mount(scope=tree.scope)
        assert taken(again) == {"vol/old", "vol/new"}
        assert taken(again, "--no-check-device") == {"vol/new"}

    def test_rsync(self, volume: VolumeDir, sample: Path) -> None:
        require("rsync")
        words = ["rsync", "-aHAX", "--numeric-ids", "--itemize-changes", "--delete"]
        run(*words, f"{sample}/", f"{volume.path}/copy/")
        assert_same(volume, "copy", sample)
        # It finds nothing to do, comparing contents even.
        assert run(*words, "--checksum", f"{sample}/", f"{volume.path}/copy/") == ""
        # Changes are repaired.
        (volume.path / "copy" / "a" / "big").write_text("changed")
        (volume.path / "copy" / "extra").mkdir()
        (volume.path / "copy" / "script").unlink()
        run(*words, f"{sample}/", f"{volume.path}/copy/")
        assert_same(volume, "copy", sample)

    def test_cp_within_a_volume(self, volume: VolumeDir, sample: Path) -> None:
        run("cp", "-a", sample, volume.path / "first")
        assert_same(volume, "first", sample)
        run("cp", "-a", volume.path / "first", volume.path / "second")
        assert_same(volume, "second", sample)
        run("rm", "-r", volume.path / "first")
        assert_same(volume, "second", sample)

    def test_mv_of_a_directory_to_the_root_makes_a_volume(
        self, volume: VolumeDir, tree: Mounted, sample: Path
    ) -> None:
        """rename(2) answers EXDEV, so mv copies and deletes."""
        run("cp", "-a", sample, volume.path / "moved")
        run("mv", volume.path / "moved", tree.mnt / "moved")
        assert os.listdir(volume.path) == []
        assert sorted(os.listdir(tree.mnt)) == ["moved", "vol"]
        assert "moved" in volfs(tree.scope, "ls")
        moved = VolumeDir.at(tree, "moved")
        wanted = manifest(sample)
        assert manifest(moved.path) == wanted
        assert manifest(moved.data) == wanted

    def test_mv_between_volumes(self, volume: VolumeDir, tree: Mounted, sample: Path) -> None:
        other = VolumeDir.make(tree, "other")
        run("cp", "-a", sample, volume.path / "sample")
        run("mv", volume.path / "sample", other.path / "sample")
        assert os.listdir(volume.path) == []
        assert_same(other, "sample", sample)


class TestListings:
    def test_equal_those_of_the_real_directory(self, volume: VolumeDir, sample: Path) -> None:
        run("cp", "-a", sample, volume.path / "sample")
        for command in (
            r"find . -printf '%P|%y|%m|%U:%G|%s|%b|%i|%n|%l|%T@\n' | sort",
            "find . -type f -links +1 -samefile a/big | sort",
            "find . -perm -4000",
            "du --all --count-links | sort",
            "du --all --apparent-size --bytes | sort",
            "ls -liaRn --time-style=full-iso --ignore=..",
            "getfattr -R -h -d -m - -P .",
            "getfacl -R -P -n .",
            "stat --format '%n %i %h %f %o' *",
        ):
            through = run("sh", "-ec", command, cwd=volume.path / "sample")
            behind = run("sh", "-ec", command, cwd=volume.data / "sample")
            assert through, command
            assert through == behind, command

    def test_permissions_are_those_the_tools_set(self, volume: VolumeDir) -> None:
        """What chmod, chown and setfacl set is what another user meets."""
        require("setfacl")
        require_root()
        secret = volume.path / "secret"
        secret.write_text("secret")
        run("chmod", "600", secret)
        run("cat", secret, user=1000, fails=True)
        run("setfacl", "-m", "u:1000:r", secret)
        assert run("cat", secret, user=1000) == "secret"
        run("sh", "-c", f"echo x > {secret}", user=1000, fails=True)
        run("cat", secret, user=1001, fails=True)
        run("setfacl", "-b", secret)
        run("cat", secret, user=1000, fails=True)
        run("chown", "1000:1000", secret)
        assert run("cat", secret, user=1000) == "secret"
        # Only its owner may, and only root may give it away.
        run("chmod", "644", secret, user=1001, fails=True)
        run("chown", "1001", secret, user=1000, fails=True)
        run("chmod", "644", secret, user=1000)
        assert run("cat", secret, user=1001) == "secret"


class TestBuilding:
    def test_virtual_environment(self, volume: VolumeDir) -> None:
        environment = volume.path / "environment"
        run(sys.executable, "-m", "venv", "--without-pip", "--copies", environment)
        code = "import json, sqlite3, sys; print(sys.prefix)"
        assert run(environment / "bin" / "python", "-c", code).strip() == str(environment)
        (volume.path / "package").mkdir()
        (volume.path / "package" / "__init__.py").write_text("name = 'found'")
        code = "import package; print(package.name)"
        writing = {"PYTHONDONTWRITEBYTECODE": ""}
        found = run(environment / "bin" / "python", "-c", code, cwd=volume.path, env=writing)
        assert found.strip() == "found"
        assert list((volume.data / "package" / "__pycache__").glob("*.pyc"))

    def test_parallel_make(self, volume: VolumeDir) -> None:
        require("gcc", "make")
        count = 16
        directory = volume.path / "project"
        directory.mkdir()
        (directory / "common.h").write_text("#define ADDED 1\n")
        for number in range(count):
            (directory / f"part{number}.c").write_text(
                f'#include "common.h"\nint part{number}(void) {{ return ADDED; }}\n'
            )
        calls = "+".join(f"part{number}()" for number in range(count))
        declared = "".join(f"int part{number}(void);" for number in range(count))
        (directory / "main.c").write_text(
            f'#include <stdio.h>\n{declared}\nint main(void) {{ printf("%d\\n", {calls}); }}\n'
        )
        parts = " ".join(f"part{number}.o" for number in range(count))
        (directory / "Makefile").write_text(
            f"program: main.o libparts.a\n\tgcc -o $@ $^\n"
            f"libparts.a: {parts}\n\tar rcs $@ $^\n"
            f"{parts}: common.h\n%.o: %.c\n\tgcc -c -o $@ $<\n"
        )
        run("make", "-j", "4", cwd=directory)
        assert run(directory / "program").strip() == str(count)
        assert "up to date" in run("make", cwd=directory)
        # A changed header is newer than what was made of it.
        (directory / "common.h").write_text("#define ADDED 2\n")
        assert run("make", "-j", "4", cwd=directory).count("gcc -c") == count
        assert run(directory / "program").strip() == str(2 * count)
        # The program runs behind the mount too.
        assert run(volume.data / "project" / "program").strip() == str(2 * count)


class TestEditing:
    def test_save_by_rename(self, volume: VolumeDir) -> None:
        """Editors write beside the file, sync, and rename over it: readers see old or new."""
        path, new = volume.path / "document", volume.path / ".document.new"
        path.write_text("version 0")
        with path.open() as old_reader:
            for version in range(1, 30):
                fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.write(fd, b"version %d" % version)
                os.fsync(fd)
                os.close(fd)
                os.rename(new, path)
                directory = os.open(volume.path, os.O_RDONLY | os.O_DIRECTORY)
                os.fsync(directory)
                os.close(directory)
                assert path.read_text() == f"version {version}"
                assert (volume.data / "document").read_text() == f"version {version}"
            assert old_reader.read() == "version 0", "an open file stays what it was"
            assert os.fstat(old_reader.fileno()).st_nlink == 0
        assert os.listdir(volume.path) == ["document"]

    def test_sed_in_place(self, volume: VolumeDir) -> None:
        path = volume.path / "settings"
        path.write_text("color = blue\n")
        path.chmod(0o640)
        if os.geteuid() == 0:
            os.chown(path, 1000, 2000)
        before = path.stat()
        run("sed", "-i.orig", "s/blue/green/", path)
        after = path.stat()
        assert path.read_text() == "color = green\n"
        assert (volume.path / "settings.orig").stat().st_ino == before.st_ino != after.st_ino
        assert (after.st_mode, after.st_uid, after.st_gid) == (
            (before.st_mode, before.st_uid, before.st_gid)
        )

    def test_two_shells_append_to_one_log(self, volume: VolumeDir) -> None:
        script = "for i in $(seq 150); do echo $0 $i >> log; done"
        writers = [
            subprocess.Popen(["sh", "-ec", script, name], cwd=volume.path, text=True)
            for name in ("one", "two", "three")
        ]
        try:
            assert [writer.wait(60) for writer in writers] == [0, 0, 0]
        finally:
            for writer in writers:
                end(writer)
        lines = (volume.data / "log").read_text().split("\n")
        assert len(lines) == 3 * 150 + 1 and len(set(lines)) == len(lines)


@pytest.fixture
def children(tree: Mounted) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be ended with the test."""
    started: list[subprocess.Popen[str]] = []
    # Asking for the tree has them ended before it is.
    yield started
    for process in started:
        end(process)


class TestWatching:
    def test_tail_follows_writers(
        self, volume: VolumeDir, children: list[subprocess.Popen[str]]
    ) -> None:
        log = volume.path / "log"
        log.write_text("first\n")
        tail = subprocess.Popen(
            ["tail", "-n", "+1", "-s", "0.05", "-F", log],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        children.append(tail)
        assert tail.stdout
        assert tail.stdout.readline() == "first\n"
        for number in range(20):
            run("sh", "-c", f"echo line {number} >> {log}")
            assert tail.stdout.readline() == f"line {number}\n"
        # A writer behind the mount is seen as well, within the time that attributes are kept.
        with (volume.data / "log").open("a") as behind:
            behind.write("from behind\n")
        assert tail.stdout.readline() == "from behind\n"
        # Rotation: tail goes on with the new file of that name.
        log.rename(volume.path / "log.1")
        log.write_text("after rotation\n")
        assert tail.stdout.readline() == "after rotation\n"

    def test_inotify_reports_changes_made_through_the_tree(
        self, volume: VolumeDir, tree: Mounted, children: list[subprocess.Popen[str]]
    ) -> None:
        require("inotifywait")
        events = "create,close_write,moved_from,moved_to,delete,attrib"
        watch = subprocess.Popen(
            [
                *("inotifywait", "--monitor", "--format", "%w|%e|%f", "--event", events),
                *(tree.mnt, volume.path),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(watch)
        assert watch.stdout and watch.stderr
        while "established" not in (line := watch.stderr.readline()):
            assert line, "inotifywait gave up"

        root, inside = f"{tree.mnt}/", f"{volume.path}/"
        run("sh", "-ec", "echo x > file; mv file renamed; chmod 600 renamed", cwd=volume.path)
        run("sh", "-ec", "rm renamed; mkdir ../another; rmdir ../another", cwd=volume.path)
        expected = [
            f"{inside}|CREATE|file",
            f"{inside}|CLOSE_WRITE,CLOSE|file",
            f"{inside}|MOVED_FROM|file",
            f"{inside}|MOVED_TO|renamed",
            f"{inside}|ATTRIB|renamed",
            f"{inside}|DELETE|renamed",
            f"{root}|CREATE,ISDIR|another",
            f"{root}|DELETE,ISDIR|another",
        ]
        assert [watch.stdout.readline().strip() for _ in expected] == expected

    def test_flock_keeps_the_other_process_waiting(
        self, volume: VolumeDir, children: list[subprocess.Popen[str]]
    ) -> None:
        require("flock")
        lock, sign = volume.path / "lock", volume.path / "held"
        holder = subprocess.Popen(
            ["flock", lock, "sh", "-c", f"touch {sign}; read line"],
            stdin=subprocess.PIPE,
            text=True,
        )
        children.append(holder)
        wait_for(sign.exists, "the lock")
        run("flock", "--nonblock", lock, "true", fails=True)
        run("flock", "--nonblock", volume.path / "other-lock", "true")
        holder.communicate("\n", timeout=20)
        run("flock", "--nonblock", lock, "true")
