"""Programs that run from the tree, or behind it, while their files are open, mapped or written."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.children import USER, run_as
from tests.conftest import wait_for
from tests.mount.comparing import Pair, outcome

pytestmark = pytest.mark.usefixtures("nothing_is_kept")


@pytest.fixture
def sleeper(pair: Pair) -> Path:
    """A program in the volume that runs for long, or not at all."""
    program = pair.mounted / "sleeper"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    return program


def test_a_program_runs_while_it_is_open_and_mapped(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        program = top / "echo"
        shutil.copy(shutil.which("echo") or "/bin/echo", program)
        told: list[object] = []
        with program.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=1) as mapped:
            for uid in (0, USER):
                run = partial(subprocess.run, [program, "ran"], check=True, stdout=-1)
                told += [run_as(run, uid).stdout, mapped[:4]]
        with subprocess.Popen([program, "ran"], stdout=-1) as child, program.open("rb") as file:
            told += [file.read(4), child.communicate()[0]]
        os.link(program, top / "other name")
        done = subprocess.run([top / "other name", "ran"], check=True, stdout=-1)
        program.unlink()
        return [*told, done.stdout]

    assert "ran" in str(pair.same(operation))


def test_a_program_written_just_now_runs(pair: Pair) -> None:
    """As after a link editor, again and again: nobody has it open for writing any more."""
    program = pair.mounted / "program"
    original = Path(shutil.which("echo") or "/bin/echo").read_bytes()
    for number in range(20):
        program.write_bytes(original)
        program.chmod(0o755)
        done = subprocess.run([program, str(number)], check=True, stdout=-1)
        assert done.stdout == b"%d\n" % number
        if number % 2:
            program.unlink()


def test_a_program_that_runs_behind_the_mount_is_busy_in_the_tree(
    pair: Pair, sleeper: Path
) -> None:
    """It says so as natively, to each way of opening for writing; reading goes on."""
    with subprocess.Popen([pair.data / "sleeper", "60"]) as running:
        try:
            for access in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
                assert outcome(os.open, sleeper, access) == "ETXTBSY"
            assert outcome(os.open, sleeper, os.O_WRONLY | os.O_TRUNC) == "ETXTBSY"
            assert outcome(os.truncate, sleeper, 0) == "ETXTBSY"
            assert sleeper.read_bytes() == (pair.data / "sleeper").read_bytes() != b""
        finally:
            running.kill()
    with sleeper.open("r+b") as file:
        file.write(b"\x7fELF")


def test_a_program_open_for_writing_in_the_tree_does_not_run(pair: Pair, sleeper: Path) -> None:
    with sleeper.open("r+b"):
        for path in (sleeper, pair.data / "sleeper"):
            with pytest.raises(OSError) as caught:
                subprocess.run([path, "0"], check=True)
            assert caught.value.errno == errno.ETXTBSY
    assert subprocess.run([sleeper, "0"], check=True).returncode == 0

    def runs() -> bool:  # once the daemon has heard of the close
        return outcome(lambda: subprocess.run([pair.data / "sleeper", "0"])) != "ETXTBSY"

    wait_for(runs, "the program to be run behind the mount", 5.0)


def test_a_program_that_runs_in_the_tree_can_be_written_behind_it(
    pair: Pair, sleeper: Path
) -> None:
    """A known difference: that it runs is known of the file in the tree only."""
    with subprocess.Popen([sleeper, "60"]) as running:
        try:
            assert outcome(lambda: sleeper.open("r+b").close()) == "ETXTBSY"
            with (pair.data / "sleeper").open("r+b") as behind:
                behind.write(b"\x7fELF")
        finally:
            running.kill()
