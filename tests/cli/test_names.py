"""Names as people type them: paths in a tree, and the scope of the tree one names or stands in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest

from tests.children import USER
from tests.cli.running import ROOT, Result, program, volfs
from tests.conftest import Mounted, MountFactory, is_mounted, wait_for
from tests.unprivileged import shared
from volfs.linux import syscalls

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="these mount as root"),
    pytest.mark.any_level,
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scope that the environment names, with a volume: nobody here means it."""
    path = tmp_path / "elsewhere"
    monkeypatch.setenv("VOLFS_SCOPE", str(path))
    monkeypatch.chdir(tmp_path)
    assert volfs("create", "db").code == 0
    return path


@pytest.fixture
def web(tree: Mounted) -> Path:
    """A volume in the tree."""
    path = tree.mnt / "web"
    path.mkdir()
    (path / "sub").mkdir()
    (path / "file").write_text("content")
    return path


def meant(*words: str | Path) -> str:
    """The data path of the one volume that is meant."""
    result = volfs("label", "--json", *words)
    assert result.code == 0, result.err
    return str(result.json["path"])


def ls(*words: str | Path) -> list[str]:
    result = volfs("ls", "-q", *words)
    assert (result.code, result.err) == (0, "")
    return result.out.splitlines()


class TestPaths:
    def test_from_where_one_is(self, tree: Mounted, web: Path) -> None:
        for at, words in {
            "": ("web", "web/", "./web", "web//", "././web/.", "nix/../web", f"{web}", f"{web}/"),
            "web": (".", "../web", "./"),
            "web/sub": ("..", "../../web"),
            "..": (f"{tree.mnt.name}/web/", f"./{tree.mnt.name}/web"),
        }.items():
            with chdir(tree.mnt / at):
                for word in words:
                    assert meant(word) == str(tree.data("web")), (at, word)

    def test_from_anywhere(self, tree: Mounted, web: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tree.mnt)
        for path in (tree.mnt / "web", f"{tree.mnt}/web/", tmp_path / "link/web", "link/web"):
            assert meant(path) == str(tree.data("web"))

    def test_every_command(self, tree: Mounted, web: Path, tmp_path: Path) -> None:
        mnt, archive = tree.mnt, tmp_path / "archive"

        def done(*words: str | Path) -> Result:
            result = volfs(*words)
            assert result.code == 0, (words, result.err)
            return result

        done("create", mnt / "a", mnt / "b")
        done("create", "--opt", f"from={mnt}/web", mnt / "copy")
        assert (mnt / "copy/file").read_text() == "content"
        done("label", f"{mnt}/a/", "team=blue")
        assert done("label", mnt / "a").out == "team=blue\n"
        done("rename", mnt / "a", "c")
        done("rename", "c", mnt / "d")
        done("clone", mnt / "web", mnt / "e")
        done("export", "-o", archive, mnt / "e/")
        done("import", "-i", archive, mnt / "f")
        assert ls("--scope", mnt) == ["b", "copy", "d", "e", "f", "web"]
        assert done("rm", f"{mnt}/b/", mnt / "d", "e").out.splitlines() == [
            f"removed {name} (volfs restore --scope {tree.scope} {name} brings it back)"
            for name in ("b", "d", "e")
        ]
        done("restore", mnt / "b")
        done("restore", mnt / "d", "--as", f"{mnt}/g/")
        assert sorted(os.listdir(mnt)) == ["b", "copy", "f", "g", "web"]
        assert ls() == ["db"]

    def test_a_bind_mount_of_a_volume(self, tree: Mounted, web: Path, workspace: Path) -> None:
        (bound := workspace / "bound").mkdir()
        subprocess.run(["mount", "--bind", web, bound], check=True)
        try:
            assert meant(bound) == str(tree.data("web"))
            result = volfs("inspect", bound / "sub")
            assert (
                result.err
                == f"volfs: {bound}/sub is inside a volume: give the volume itself, web\n"
            )
        finally:
            syscalls.umount2(os.fsencode(bound))

    def test_something_mounted_on_a_volume(self, tree: Mounted, web: Path) -> None:
        with covered(web):
            assert meant(web) == str(tree.data("web"))

    def test_something_mounted_on_the_tree(self, tree: Mounted, web: Path) -> None:
        with covered(tree.mnt):
            result = volfs("inspect", web)
            assert result.code == 3
            assert "is in no tree of volumes" in result.err

    def test_a_tree_whose_daemon_was_killed(self, mount: MountFactory) -> None:
        tree = mount()
        (tree.mnt / "web").mkdir()
        tree.process.kill()
        tree.process.wait()
        tree.stopped = True
        try:
            with pytest.raises(OSError, match="not connected"):
                os.stat(tree.mnt / "web")
            assert meant(tree.mnt / "web") == str(tree.data("web"))
        finally:
            syscalls.umount2(os.fsencode(tree.mnt), syscalls.MNT_DETACH)


class TestWhatIsNoVolume:
    @pytest.mark.parametrize("below", ["file", "sub", "sub/deeper", "missing"])
    def test_below_a_volume(self, tree: Mounted, web: Path, below: str) -> None:
        result = volfs("rm", web / below)
        assert result.code == 3
        assert result.err == (
            f"volfs: {web}/{below} is inside a volume: give the volume itself, web, or {web}\n"
        )
        assert ls("--scope", tree.scope) == ["web"]

    def test_the_others_are_volumes_nevertheless(self, tree: Mounted, web: Path) -> None:
        result = volfs("rm", web / "sub", web, "/nowhere/at/all")
        assert result.code == 3
        assert len(result.err.splitlines()) == 2
        assert ls("--scope", tree.scope) == []

    def test_a_link_in_a_volume(self, tree: Mounted, web: Path) -> None:
        (tree.mnt / "other").mkdir()
        (web / "link").symlink_to(tree.mnt / "other")
        (web / "up").symlink_to(tree.mnt)
        for path in (web / "link", f"{web}/link/", web / "up/other"):
            assert volfs("rm", path).code == 3
        assert ls("--scope", tree.scope) == ["other", "web"]

    def test_the_tree_itself(self, tree: Mounted) -> None:
        with chdir(tree.mnt):
            for word in (str(tree.mnt), ".", f"{tree.mnt}/"):
                result = volfs("rm", word)
                assert result.code == 3
                assert result.err == (
                    f"volfs: {word} is a whole tree, of {tree.scope}: give a volume in it\n"
                )

    def test_in_no_tree(self, tmp_path: Path) -> None:
        (tmp_path / "db").mkdir()
        for word in ("db/", "./db", str(tmp_path / "db"), "/", "."):
            result = volfs("rm", word)
            assert result.code == 3
            assert result.err == (
                f"volfs: {word} is in no tree of volumes: give the volume's name, or its path in a"
                " mounted tree\n"
            )
        (tmp_path / "db").rmdir()
        assert volfs("rm", "db/").code == 0

    def test_not_found_says_where(self, tree: Mounted, elsewhere: Path) -> None:
        result = volfs("inspect", tree.mnt / "nope")
        assert (result.code, result.err) == (4, f"volfs: no volume 'nope' in {tree.scope}\n")
        for words in (["inspect", "nope"], ["rm", "nope"], ["rename", "nope", "x"]):
            result = volfs(*words)
            assert (result.code, result.err) == (4, f"volfs: no volume 'nope' in {elsewhere}\n")
        result = volfs("restore", "nope")
        assert result.code == 4
        assert result.err == f"volfs: {elsewhere}: no removed volume 'nope' is in the trash\n"


class TestScope:
    def test_of_the_tree_in_whose_root_one_stands(self, tree: Mounted, web: Path) -> None:
        with chdir(tree.mnt):
            assert ls() == ["web"]
            assert volfs("df", "--json").json["scope"] == str(tree.scope)
            assert volfs("rm", "web").out == "removed web (volfs restore web brings it back)\n"
            assert volfs("restore", "web").code == 0
            assert volfs("prune", "--yes", "--json").json == [{"name": "web"}]
            assert volfs("purge", "--yes", "--json").json[0]["name"] == "web"

    def test_not_of_one_further_up(self, tree: Mounted, web: Path) -> None:
        with chdir(web):
            assert ls() == ["db"]

    def test_an_option_wins(self, tree: Mounted, web: Path, elsewhere: Path) -> None:
        with chdir(tree.mnt):
            assert ls("--scope", elsewhere) == ["db"]
            assert volfs("rm", "--scope", elsewhere, "db").code == 0

    def test_a_tree_given_as_scope(self, tree: Mounted, web: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tree.mnt)
        for scope in (tree.mnt, f"{tree.mnt}/", "link"):
            assert ls("--scope", scope) == ["web"]
            assert meant("--scope", scope, "web") == str(tree.data("web"))
        assert volfs("rm", "--scope", tree.mnt, tree.mnt / "web").code == 0

    def test_by_the_environment(
        self, tree: Mounted, web: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VOLFS_SCOPE", str(tree.mnt))
        assert ls() == ["web"]

    def test_a_tree_is_not_served_as_a_scope(self, tree: Mounted, workspace: Path) -> None:
        (target := workspace / "target").mkdir()
        why = f"volfs: {tree.mnt} is a tree of {tree.scope}: give that as the scope\n"
        commands: list[list[str | Path]] = [
            ["mount", "-f", tree.mnt, target],
            ["plugin", "-f", "--scope", tree.mnt, "--native", "--socket", workspace / "socket"],
        ]
        for words in commands:
            result = program(*words)
            assert (result.code, result.err) == (9, why)
        assert os.listdir(tree.mnt) == []

    def test_contradictions(self, mount: MountFactory, elsewhere: Path) -> None:
        one, two = mount(), mount()
        for tree in (one, two):
            (tree.mnt / "web").mkdir()
            (tree.mnt / "db").mkdir()
        words: list[tuple[list[str | Path], str]] = [
            (["--scope", elsewhere, one.mnt / "web"], f"but --scope says {elsewhere}"),
            (["--scope", two.scope, one.mnt / "web"], f"but --scope says {two.scope}"),
            ([one.mnt / "web", two.mnt / "web"], "a command works on one scope"),
        ]
        for given, why in words:
            result = volfs("rm", *given)
            assert result.code == 2
            assert why in result.err
        with chdir(two.mnt):
            result = volfs("rm", one.mnt / "web", "db")
            assert result.code == 2
            assert f"here a name alone is a volume of {two.scope}" in result.err
            assert volfs("rm", "--scope", one.scope, "web/").code == 2
            for tree in (one, two):
                assert sorted(os.listdir(tree.mnt)) == ["db", "web"]
            assert volfs("rm", one.mnt / "web").code == 0

    def test_what_calls_itself_a_tree_is_none(
        self, tree: Mounted, web: Path, workspace: Path
    ) -> None:
        (pretended := workspace / "pretended").mkdir()
        os.chown(pretended, USER, USER)
        command: list[str | Path] = [
            *(sys.executable, "-m", "tests.mount.pretender", str(USER), workspace),
            *(pretended, tree.scope, "web"),
        ]
        with shared(workspace), subprocess.Popen(command, cwd=ROOT) as pretender:
            try:
                wait_for(lambda: is_mounted(pretended), "the mount")
                assert volfs("rm", pretended / "web").code == 3
                assert ls("--scope", tree.scope) == ["web"]
            finally:
                if is_mounted(pretended):
                    syscalls.umount2(os.fsencode(pretended), syscalls.MNT_DETACH)
                pretender.wait(20)


class TestNothing:
    def test_says_where_there_is_nothing(self, elsewhere: Path) -> None:
        assert volfs("ls", "--removed").err == f"nothing in the trash of {elsewhere}\n"
        assert volfs("ls", "-f", "name=x").err == f"no such volumes in {elsewhere}\n"
        assert volfs("ls").err == ""
        assert volfs("rm", "db").code == 0
        assert volfs("ls").err == f"no volumes in {elsewhere}\n"
        assert volfs("ls", "--removed").err == ""

    def test_programs_are_told_nothing(self, elsewhere: Path) -> None:
        for words in (["-f", "name=x"], ["--removed"]):
            for how in ("--quiet", "--json"):
                assert volfs("ls", *words, how).err == ""


@contextmanager
def covered(path: Path) -> Iterator[None]:
    """Inside, another filesystem is mounted there."""
    subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True)
    try:
        yield
    finally:
        syscalls.umount2(os.fsencode(path))
