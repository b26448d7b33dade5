"""What all commands have in common: help, exit codes, the scope they find, what they import."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.children import USER
from tests.cli.running import Result, names, program, volfs
from tests.interpreter import PROGRAM, User
from volfs import errors
from volfs.cli import EXIT_CODES
from volfs.errors import VolfsError

COMMANDS = (
    *("mount", "umount", "plugin", "create", "rm", "ls", "inspect", "rename", "label"),
    *("restore", "prune", "purge", "df", "clone", "export", "import", "doctor", "help"),
)


class TestAll:
    def test_every_error_has_its_documented_exit_code(self) -> None:
        classes = [
            value
            for value in vars(errors).values()
            if isinstance(value, type) and issubclass(value, VolfsError)
        ]
        assert len(classes) > 8
        assert {cls.exit_code for cls in classes} | {0, 2, 130} == set(EXIT_CODES)
        text = volfs_help("--help")
        for code, meaning in EXIT_CODES.items():
            assert f"{code}  {meaning}" in text

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_teaches_by_example(self, command: str) -> None:
        assert f"\n  {command} " in volfs_help("--help")
        text = volfs_help(command, "--help")
        assert f"\n    volfs {command}" in text

    def test_alone_it_shows_its_help(self) -> None:
        result = volfs()
        assert (result.code, result.out) == (2, "")
        assert result.err == volfs_help("--help")

    def test_version(self) -> None:
        assert volfs("--version").out == f"volfs, version {volfs_version()}\n"

    @pytest.mark.parametrize("words", [["bogus"], ["ls", "--bogus"], ["rm"], ["rename", "a"]])
    def test_wrong_usage(self, words: list[str]) -> None:
        result = volfs(*words)
        assert result.code == 2
        assert result.out == ""
        assert re.fullmatch(r"volfs: .*--help\)\n", result.err)

    @pytest.mark.parametrize(
        ("word", "meant"),
        [
            ("moutn", "did you mean mount?"),
            ("unmount", "did you mean umount?"),
            ("inspct", "did you mean inspect?"),
            ("removed", "did you mean remove?"),
            ("xyzzy", "`volfs help` lists them"),
        ],
    )
    def test_a_mistyped_command(self, word: str, meant: str) -> None:
        result = volfs(word)
        assert (result.code, result.out) == (2, "")
        assert result.err == f"volfs: there is no command {word!r}; {meant} (see volfs --help)\n"

    def test_other_names_of_commands(self, scope: Path) -> None:
        assert volfs("create", "web").code == 0
        assert volfs("mv", "web", "site") == Result(0, "", "")
        assert volfs("list", "-q") == Result(0, "site\n", "")
        assert volfs("remove", "--json", "site").json == [{"name": "site"}]
        for other, command in {"list": "ls", "remove": "rm", "mv": "rename"}.items():
            assert volfs_help(other, "--help") == volfs_help(command, "--help")
            assert volfs("help", other).code == 0

    def test_the_scope_of_somebody_who_names_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from volfs.cli.scope import default_scope

        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert default_scope() == "/var/lib/volfs"
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        assert default_scope() == str(tmp_path / "volfs")
        monkeypatch.setenv("XDG_DATA_HOME", "relative")
        monkeypatch.setenv("HOME", "/home/joe")
        assert default_scope() == "/home/joe/.local/share/volfs"

    def test_option_wins_over_environment(self, web: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        assert volfs("create", "--scope", other, "there").code == 0
        assert names("--scope", str(other)) == ["there"]
        assert names() == ["web"]

    def test_a_scope_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        result = volfs("create", "x", "--scope", tmp_path / "file")
        assert result.code == 9
        assert len(result.err.splitlines()) == 1

    @pytest.mark.skipif(os.getuid() != 0, reason="becoming another user needs root")
    def test_a_scope_of_somebody_else(self, workspace: Path) -> None:
        """What is not allowed has the exit code of a scope that cannot serve."""
        scope = workspace / "scope"
        assert volfs("create", "web", "--scope", scope).code == 0
        for words in (["ls"], ["create", "db"], ["rm", "web"], ["inspect", "web"], ["df"]):
            result = program(*words, "--scope", scope, user=User(USER, workspace))
            assert (result.code, result.out) == (9, "")
            assert "no permission; run this as its owner or as root" in result.err

    def test_heavy_modules_are_left_out(self) -> None:
        """What listing volumes need not wait for."""
        script = (
            "import sys; from volfs.cli import cli\n"
            "try: cli.main(['ls'])\n"
            "except SystemExit: pass\n"
            "print(*sys.modules, file=sys.stderr)"
        )
        result = program("-c", script, command=PROGRAM[:1])
        assert not {"pyfuse3", "trio", "rich"} & set(result.err.split())


def volfs_help(*words: str) -> str:
    result = volfs(*words)
    assert (result.code, result.err) == (0, "")
    return result.out


def volfs_version() -> str:
    import volfs as package

    return package.__version__


def test_json_is_json_for_every_command(scope: Path) -> None:
    for words in (
        ["create", "a"],
        ["ls"],
        ["inspect", "a"],
        ["rename", "a", "b"],
        ["label", "b", "x=1"],
        ["rm", "b"],
        ["ls", "--removed"],
        ["restore", "b"],
        ["df"],
        ["prune", "--yes"],
        ["purge", "--yes"],
        ["doctor"],
    ):
        result = volfs(*words, "--json")
        assert result.code == 0, (words, result.err)
        json.loads(result.out)
