"""git in a volume: cloning, committing, checking, packing, worktrees, ownership."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.clients.programs import require, require_root, run
from tests.clients.volumes import VolumeDir

COMMITS = 80
FILES_PER_COMMIT = 4

ENVIRONMENT = {
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def git(
    where: Path, *words: str | os.PathLike[str], user: int | None = None, fails: bool = False
) -> str:
    """Run git in a directory, with no configuration but the repository's."""
    return run("git", "-c", "gc.auto=0", *words, cwd=where, env=ENVIRONMENT, user=user, fails=fails)


def assert_sound(repository: Path, user: int | None = None) -> None:
    """Every object is there and whole, and the work tree is what was checked out."""
    found = git(repository, "fsck", "--full", "--strict", "--no-progress", user=user)
    assert not re.search(r"missing|broken|error|corrupt", found), found
    assert git(repository, "status", "--porcelain", user=user) == ""


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare repository with some history, outside of any volume."""
    require("git")
    bare = tmp_path_factory.mktemp("git") / "origin.git"
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", bare, env=ENVIRONMENT)
    stream = []
    for commit in range(COMMITS):
        stream.append("commit refs/heads/main")
        stream.append(f"committer A <a@example.org> {1_700_000_000 + commit} +0000")
        stream.append(f"data <<.\ncommit {commit}\n.")
        for number in range(FILES_PER_COMMIT):
            mode = "100755" if number == 0 else "100644"
            text = f"{commit} {number}\n" * (50 + 40 * number)
            stream.append(f"M {mode} inline d{commit % 12}/e{commit % 5}/f{commit}-{number}")
            stream.append(f"data <<.\n{text}.")
        stream.append(f"M 120000 inline d{commit % 12}/link\ndata <<.\nf{commit}-1\n.")
    run("git", "fast-import", "--quiet", cwd=bare, stdin="\n".join(stream) + "\n")
    return bare


def test_clone_check_and_pack(volume: VolumeDir, origin: Path) -> None:
    # A file:// address has the objects sent as a pack; a plain path would hard-link them.
    git(volume.path, "clone", "--quiet", f"file://{origin}", "clone")
    clone = volume.path / "clone"
    assert_sound(clone)
    assert len(git(clone, "log", "--oneline").splitlines()) == COMMITS
    assert len(git(clone, "ls-files").splitlines()) == COMMITS * FILES_PER_COMMIT + 12
    assert (clone / "d0/e0/f0-0").stat().st_mode & 0o111, "executables are"

    # A clone within the volume hard-links the objects.
    git(volume.path, "clone", "--quiet", "--local", "clone", "second")
    packs = list((volume.path / "second/.git/objects/pack").glob("*.pack"))
    assert packs and all(pack.stat().st_nlink == 2 for pack in packs)
    assert_sound(volume.path / "second")

    git(clone, "gc", "--quiet", "--prune=now")
    assert_sound(clone)
    assert "in-pack: 0" not in git(clone, "count-objects", "-v")

    # What git sees behind the mount is the same, index and all: nothing looks modified.
    assert git(volume.data / "clone", "status", "--porcelain") == ""
    assert git(volume.data / "clone", "diff-files", "--name-only") == ""


def test_many_commits_branches_and_worktrees(volume: VolumeDir, origin: Path) -> None:
    git(volume.path, "clone", "--quiet", f"file://{origin}", "clone")
    clone = volume.path / "clone"
    for number in range(12):
        (clone / "d0" / "log").open("a").write(f"line {number}\n")
        (clone / f"new{number}").write_text(str(number))
        git(clone, "add", "--all")
        git(clone, "commit", "--quiet", "-m", f"small {number}")
    assert len(git(clone, "log", "--oneline").splitlines()) == COMMITS + 12

    git(clone, "worktree", "add", "--quiet", "-b", "side", "../side", "HEAD~5")
    side = volume.path / "side"
    assert (side / "new6").exists() and not (side / "new7").exists()
    git(side, "rm", "--quiet", "-r", "d1")
    git(side, "mv", "d2", "renamed")
    git(side, "commit", "--quiet", "-m", "a directory less, another renamed")
    git(clone, "merge", "--quiet", "-m", "merge", "side")
    assert not (clone / "d1").exists() and (clone / "renamed").is_dir()
    git(clone, "worktree", "remove", "../side")
    assert not side.exists()

    (clone / "d3/e3/f3-1").write_text("changed\n")
    git(clone, "stash", "--quiet")
    assert_sound(clone)
    git(clone, "stash", "pop", "--quiet")
    assert git(clone, "status", "--porcelain") == " M d3/e3/f3-1\n"
    git(clone, "checkout", "--quiet", ".")
    git(clone, "repack", "-a", "-d", "--quiet")
    git(clone, "push", "--quiet", f"file://{_bare_copy(volume, origin)}", "main")
    assert_sound(clone)


def _bare_copy(volume: VolumeDir, origin: Path) -> Path:
    """Another bare clone of the origin, in the volume."""
    bare = volume.path / "bare.git"
    git(volume.path, "clone", "--quiet", "--bare", f"file://{origin}", bare)
    return bare


def test_unprivileged_user(volume: VolumeDir) -> None:
    """git trusts a repository by its owner: one's own is fine, another's is refused."""
    require("git")
    require_root()
    os.chown(volume.path, 1000, 1000)
    mine = volume.path / "mine"
    git(volume.path, "init", "--quiet", mine, user=1000)
    run("sh", "-ec", "for i in $(seq 30); do echo $i > f$i; done", cwd=mine, user=1000)
    git(mine, "add", "--all", user=1000)
    git(mine, "commit", "--quiet", "-m", "first", user=1000)
    git(mine, "gc", "--quiet", user=1000)
    assert_sound(mine, user=1000)
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in mine.rglob("*")}
    assert owners == {(1000, 1000)}

    assert "dubious ownership" in git(mine, "status", user=1001, fails=True)
    trusted = ["-c", f"safe.directory={mine}"]
    assert "first" in git(mine, *trusted, "log", user=1001)
    refused = git(mine, *trusted, "commit", "--allow-empty", "-m", "x", user=1001, fails=True)
    assert "Permission denied" in refused
