"""Archives: nothing is lost on the way, cut short they fail, and hostile ones stay inside."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.acls import ACCESS
from tests.children import NOBODY, needs_root, run_as
from tests.copies.trees import make_tree, seen
from tests.filesystems import bound, btrfs, program, xfs
from volfs.copies.archive import Packed, pack, unpack
from volfs.errors import ArchiveError

pytestmark = [pytest.mark.any_level, pytest.mark.usefixtures("nothing_stays_open")]


@pytest.fixture
def source(workspace: Path) -> Path:
    path = workspace / "source"
    path.mkdir()
    return path


@pytest.fixture
def target(workspace: Path) -> Path:
    path = workspace / "target"
    path.mkdir(0o700)
    return path


@pytest.fixture
def archive(source: Path) -> Path:
    """A small archive: a file of zeros that ends with a block, and others."""
    (source / "zeros").write_bytes(bytes(4096))
    (source / "dir").mkdir()
    (source / "dir" / "file").write_text("x" * 700)
    path = source.with_name("archive")
    pack_to(path, source)
    return path


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def pack_to(
    archive: Path,
    source: Path,
    *,
    live: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Packed:
    with opened(source) as fd, archive.open("wb") as file:
        return pack(fd, file.fileno(), live=live, on_progress=on_progress)


def unpack_from(archive: Path, target: Path) -> tuple[str, ...]:
    with opened(target) as fd, archive.open("rb") as file:
        return unpack(file.fileno(), fd)


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    info.mode = 0o755
    return info


def write_archive(path: Path, *entries: tarfile.TarInfo, text: bytes = b"evil") -> Path:
    with tarfile.open(path, "w") as archive:
        for info in entries:
            if info.isreg():
                info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return path


class TestRoundTrip:
    @pytest.mark.parametrize(
        "kind",
        [
            "disk",
            pytest.param("xfs", marks=needs_root),
            pytest.param("btrfs", marks=needs_root),
        ],
    )
    def test_all_that_a_directory_can_hold(
        self, source: Path, target: Path, kind: str, workspace: Path
    ) -> None:
        make_tree(source, sockets=False)
        expected = seen(source)
        assert pack_to(workspace / "archive", source) == Packed(0, (), ())
        assert (workspace / "archive").stat().st_size < 8 << 20  # no holes in it
        if kind == "disk":
            assert unpack_from(workspace / "archive", target) == ()
            assert seen(target) == expected
            return
        with {"xfs": xfs, "btrfs": btrfs}[kind](workspace / kind) as place:
            (place / "target").mkdir()
            unpack_from(workspace / "archive", place / "target")
            assert seen(place / "target") == expected
            pack_to(workspace / "archive", place / "target")
            unpack_from(workspace / "archive", target)
            assert "trusted.SGI_ACL_FILE" not in os.listxattr(target / "text")
            assert seen(target) == expected

    def test_a_user_has_all_but_what_is_roots(self, workspace: Path) -> None:
        def attempt() -> bool:
            mine = workspace / "mine"
            (mine / "source").mkdir()
            (mine / "target").mkdir()
            make_tree(mine / "source", sockets=False)
            pack_to(mine / "archive", mine / "source", live=True)
            unpack_from(mine / "archive", mine / "target")
            return seen(mine / "target") == seen(mine / "source")

        (workspace / "mine").mkdir()
        os.chown(workspace / "mine", NOBODY, NOBODY)
        assert run_as(attempt, NOBODY)

    @pytest.mark.parametrize(
        ("name", "package"),
        [("gzip", "gzip"), ("xz", "xz-utils"), ("zstd", "zstd"), ("bzip2", "bzip2")],
    )
    def test_compressed(self, source: Path, target: Path, name: str, package: str) -> None:
        make_tree(source, sockets=False)
        archive = source.with_name("archive")
        pack_to(archive, source)
        data = archive.read_bytes()
        done = subprocess.run(
            [program(name, package), "-1", "-c"], input=data, stdout=subprocess.PIPE, check=True
        )
        archive.write_bytes(done.stdout)
        unpack_from(archive, target)
        assert seen(target) == seen(source)

    def test_the_environment_of_the_caller_is_not_heeded(
        self, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """TAR_OPTIONS and GZIP hold what somebody likes by hand."""
        (source / "file").write_text("x")
        (source / "other").write_text("y")
        monkeypatch.setenv("TAR_OPTIONS", "--exclude=file --gzip")
        monkeypatch.setenv("GZIP", "--name --list")
        plain = source.with_name("plain")
        pack_to(plain, source)
        compressed = source.with_name("compressed")
        compressed.write_bytes(gzip.compress(plain.read_bytes()))
        for archive in (plain, compressed):
            assert unpack_from(archive, target) == ()
            assert sorted(os.listdir(target)) == ["file", "other"]
            for name in os.listdir(target):
                (target / name).unlink()

    def test_a_socket_is_left_out_and_told(self, source: Path, target: Path) -> None:
        make_tree(source)
        (complaint,) = pack_to(source.with_name("archive"), source).complaints
        assert complaint.endswith("socket: socket ignored")

    @needs_root
    def test_an_acl_is_kept_by_number(self, source: Path, target: Path) -> None:
        """Its text names users of this host; elsewhere those names are other users, or none."""
        (source / "file").touch()
        subprocess.run(
            [program("setfacl", "acl"), "-m", "u:1:rwx,u:4321:r", source / "file"], check=True
        )
        expected = os.getxattr(source / "file", ACCESS)
        archive = source.with_name("archive")
        pack_to(archive, source)
        data = archive.read_bytes()
        misread = data.replace(b"\nuser:daemon:rwx\n", b"\nuser:nobody:rwx\n")
        if misread == data:  # GNU tar 1.35 writes numbers
            misread = data.replace(b"\nuser:1:rwx\n", b"\nuser:2:rwx\n")
        assert misread != data
        archive.write_bytes(misread)
        unpack_from(archive, target)
        assert os.getxattr(target / "file", ACCESS) == expected

    def test_an_acl_that_is_there_as_text_only(self, source: Path, target: Path) -> None:
        (source / "file").touch()
        subprocess.run([program("setfacl", "acl"), "-m", "u:4321:rwx", source / "file"], check=True)
        archive = source.with_name("archive")
        subprocess.run(
            ["tar", "--format=posix", "--acls", "-cf", archive, "-C", source, "."], check=True
        )
        assert b"system.posix_acl" not in archive.read_bytes()
        unpack_from(archive, target)
        assert os.getxattr(target / "file", ACCESS) == os.getxattr(source / "file", ACCESS)

    def test_without_an_entry_for_the_top_it_stays_as_it_was(
        self, workspace: Path, target: Path
    ) -> None:
        target.chmod(0o711)
        unpack_from(write_archive(workspace / "archive", entry("file")), target)
        assert target.stat().st_mode & 0o777 == 0o711


class TestPack:
    @needs_root
    def test_what_is_mounted_inside_stays_outside(self, source: Path, target: Path) -> None:
        (source / "below").mkdir()
        (source / "below" / "own").touch()
        (source.with_name("outside")).mkdir()
        (source.with_name("outside") / "file").touch()
        with bound(source.with_name("outside"), source / "below"):
            packed = pack_to(source.with_name("archive"), source, live=True)
        assert packed.changed == 0
        unpack_from(source.with_name("archive"), target)
        assert [str(path.relative_to(target)) for path in target.rglob("*")] == [
            "below",
            "below/own",
        ]

    @needs_root
    def test_subvolumes_of_btrfs_are_part_of_it(self, workspace: Path, target: Path) -> None:
        with btrfs(workspace / "btrfs") as place:
            create = [program("btrfs", "btrfs-progs"), "subvolume", "create"]
            subprocess.run([*create, place / "sub"], check=True, capture_output=True)
            (place / "sub" / "file").touch()
            packed = pack_to(workspace / "archive", place, live=True)
        assert packed == Packed(0, (), ())
        unpack_from(workspace / "archive", target)
        assert (target / "sub" / "file").exists()

    def test_a_live_one_that_rests_is_of_one_point_in_time(self, source: Path) -> None:
        make_tree(source, sockets=False)
        assert pack_to(source.with_name("archive"), source, live=True) == Packed(0, (), ())

    def test_what_changes_meanwhile_is_told(self, source: Path, target: Path) -> None:
        make_tree(source, sockets=False)
        done: list[int] = []

        def change(count: int) -> None:
            if not done:
                done.append(count)
                (source / "text").write_text("other")

        packed = pack_to(source.with_name("archive"), source, live=True, on_progress=change)
        assert (packed.changed, packed.examples) == (1, ("text",))
        unpack_from(source.with_name("archive"), target)  # it is whole even so

    def test_nobody_reads_it(self, source: Path) -> None:
        (source / "file").write_bytes(bytes(4 << 20))
        reader, writer = os.pipe()
        os.close(reader)
        with opened(source) as fd, pytest.raises(BrokenPipeError):
            pack(fd, writer)
        os.close(writer)

    def test_a_disk_that_is_full(self, source: Path) -> None:
        with (
            Path("/dev/full").open("wb") as full,
            opened(source) as fd,
            pytest.raises(OSError, match="No space left"),
        ):
            pack(fd, full.fileno())

    @needs_root
    def test_what_may_not_be_read_is_named(self, source: Path) -> None:
        (source / "secret").touch(0o600)

        def attempt() -> str:
            with opened(source) as fd, Path(os.devnull).open("wb") as out:
                try:
                    pack(fd, out.fileno())
                except ArchiveError as error:
                    return str(error)
            return "packed"

        assert "secret: Cannot open: Permission denied" in run_as(attempt, NOBODY)


class TestCutShort:
    def test_anywhere(self, archive: Path, target: Path) -> None:
        """Also where the file of zeros ends, which might be taken for the end of all."""
        data = archive.read_bytes()
        end = len(data.rstrip(b"\0"))
        end += -end % 512
        cuts = [*range(512, end + 1, 512), end - 700]
        assert len(cuts) > 10
        for cut in cuts:
            archive.write_bytes(data[:cut])
            with pytest.raises(ArchiveError, match=r"cut short|Unexpected EOF"):
                unpack_from(archive, target)

    @pytest.mark.parametrize("name", ["gzip", "xz", "zstd", "bzip2"])
    def test_compressed(self, archive: Path, target: Path, name: str) -> None:
        done = subprocess.run(
            [program(name, name), "-c", archive], stdout=subprocess.PIPE, check=True
        )
        archive.write_bytes(done.stdout[:-5])
        with pytest.raises(ArchiveError):
            unpack_from(archive, target)
        archive.write_bytes(done.stdout[: len(done.stdout) // 2])
        with pytest.raises(ArchiveError):
            unpack_from(archive, target)

    def test_empty(self, archive: Path, target: Path) -> None:
        archive.write_bytes(b"")
        with pytest.raises(ArchiveError, match="empty"):
            unpack_from(archive, target)

    @pytest.mark.parametrize("data", [b"x", b"hello\n" * 1000, b"\x1f\x8b", b"PK\3\4" * 1000])
    def test_none_at_all(self, archive: Path, target: Path, data: bytes) -> None:
        archive.write_bytes(data)
        with pytest.raises(ArchiveError, match=r"archive|unexpected end"):
            unpack_from(archive, target)

    def test_nothing_in_it(self, archive: Path, target: Path) -> None:
        archive.write_bytes(bytes(10240))
        unpack_from(archive, target)
        assert os.listdir(target) == []

    def test_what_comes_after_the_end_is_read_and_passed_over(
        self, archive: Path, target: Path
    ) -> None:
        reader, writer = os.pipe()
        data = archive.read_bytes() + b"more" * (1 << 20)
        failed: list[Exception] = []

        def write() -> None:
            try:
                with os.fdopen(writer, "wb") as file:
                    file.write(data)
            except BrokenPipeError as error:
                failed.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        with opened(target) as fd:
            unpack(reader, fd)
        thread.join()
        os.close(reader)
        assert failed == []

    def test_a_missing_program_is_named(
        self, archive: Path, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(target))
        with pytest.raises(ArchiveError, match=r"tar is missing \(Debian package tar\)"):
            unpack_from(archive, target)
        archive.write_bytes(b"\xfd7zXZ\0" + bytes(100))
        with pytest.raises(ArchiveError, match=r"xz is missing \(Debian package xz-utils\)"):
            unpack_from(archive, target)


LINK, HARD, DIR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
HOSTILE = {
    "parent": [entry("../evil")],
    "parent within": [entry("a/", DIR), entry("a/../../evil")],
    "absolute": [entry("{outside}/evil")],
    "link to outside": [entry("a", LINK, "{outside}"), entry("a/evil")],
    "link to parent": [entry("a", LINK, ".."), entry("a/evil"), entry("a/outside/evil")],
    "links in steps": [
        entry("d/", DIR),
        entry("d/a", LINK, "../.."),
        entry("b", LINK, "d/a"),
        entry("b/outside/evil"),
    ],
    "link over a directory": [
        entry("a/", DIR),
        entry("a", LINK, "{outside}"),
        entry("a/evil"),
    ],
    "link over a file": [entry("a", LINK, "{outside}/victim"), entry("a")],
    "hard link to outside": [entry("a", HARD, "{outside}/victim"), entry("a")],
    "hard link to parent": [entry("a", HARD, "../outside/victim"), entry("a")],
    "hard link through a link": [
        entry("a", LINK, "{outside}"),
        entry("b", HARD, "a/victim"),
        entry("b"),
    ],
    "hard link to a link": [
        entry("a", LINK, "{outside}/victim"),
        entry("b", HARD, "a"),
        entry("b"),
    ],
    "the top a link": [entry(".", LINK, "{outside}"), entry("./evil")],
    "directory after link": [
        entry("a", LINK, "../outside"),
        entry("a/", DIR),
        entry("a/evil"),
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_written_outside(workspace: Path, name: str) -> None:
    outside, target = workspace / "outside", workspace / "target"
    outside.mkdir(0o700)
    target.mkdir()
    (outside / "victim").write_text("unharmed")
    (outside / "victim").chmod(0o600)
    before = seen(outside)
    entries = []
    for info in HOSTILE[name]:
        place = info.replace(
            name=info.name.replace("{outside}", str(outside)),
            linkname=info.linkname.replace("{outside}", str(outside)),
            deep=False,
        )
        entries.append(place)
    write_archive(workspace / "archive", *entries)
    with suppress(ArchiveError):  # some are refused altogether
        unpack_from(workspace / "archive", target)
    assert seen(outside) == before
    assert sorted(os.listdir(workspace)) == ["archive", "outside", "target"]


@needs_root
def test_an_archive_cannot_have_devices_of_a_user(workspace: Path, target: Path) -> None:
    device = entry("null", tarfile.CHRTYPE)
    device.devmajor, device.devminor = 1, 3
    write_archive(workspace / "archive", device)
    os.chown(target, NOBODY, NOBODY)

    def attempt() -> str:
        try:
            unpack_from(workspace / "archive", target)
        except ArchiveError as error:
            return str(error)
        return "unpacked"

    assert "null: Cannot mknod: Operation not permitted" in run_as(attempt, NOBODY)
    unpack_from(workspace / "archive", target)
    assert (target / "null").is_char_device()
