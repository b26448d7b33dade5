"""Signals: SIGHUP opens the log anew, all others that would end a daemon end it in order."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import levels
from tests.cli.background import Background
from tests.cli.running import process, program, running, shell
from tests.conftest import is_mounted, wait_for
from tests.daemons import ServiceManager
from tests.interpreter import Piped
from volfs.linux.signals import ENDING

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="these mount as root")

NUMBERS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGPOLL, signal.SIGPWR),
    *(signal.SIGSTKFLT, signal.SIGXCPU, signal.SIGRTMIN, signal.SIGRTMAX - 1),
)
"""What signal(7) lists with the action "Term" or "Core" and can be caught, faults and SIGHUP left
out, and SIGPIPE and SIGXFSZ, which Python ignores."""


@contextmanager
def foreground(*words: str | Path) -> Iterator[Piped]:
    """A daemon in the foreground, once it serves."""
    with (
        ServiceManager(f"@volfs-test-{os.getpid()}") as manager,
        Piped(*words, environment=manager.environment) as daemon,
    ):
        assert manager.hears_ready(daemon)
        yield daemon


def mounted(place: Background) -> tuple[str | Path, ...]:
    return ("mount", "-f", "-v", *levels.mount_options(), place.scope, place.mnt)


def served(place: Background) -> tuple[str | Path, ...]:
    path = place.mnt.with_name("socket")
    return ("plugin", "-f", "-v", "--native", "--scope", place.scope, "--socket", path)


class TestEnding:
    def test_those_that_end_a_process_and_can_be_caught(self) -> None:
        assert set(NUMBERS) <= set(ENDING)
        assert len(ENDING) == len(set(NUMBERS)) + (signal.SIGRTMAX - signal.SIGRTMIN - 1)

    @pytest.mark.parametrize("number", NUMBERS)
    def test_unmounts(self, place: Background, number: int) -> None:
        with foreground(*mounted(place)) as daemon:
            (place.mnt / "one").mkdir()
            with process(*shell(":"), cwd=place.mnt / "one"):
                daemon.send_signal(number)
                assert daemon.wait(20) == 0
            assert not is_mounted(place.mnt)
            log = daemon.log
        assert "INFO volfs.fs.mount.serving: unmounting upon " in log

    @pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGUSR1, signal.SIGRTMAX])
    def test_ends_the_plugin(self, place: Background, number: int) -> None:
        with foreground(*served(place)) as daemon:
            daemon.send_signal(number)
            assert daemon.wait(20) == 0
        assert not place.mnt.with_name("socket").exists()

    def test_a_second_one_does_not_hurt(self, place: Background) -> None:
        with foreground(*mounted(place)) as daemon:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
                daemon.send_signal(number)
            assert daemon.wait(20) == 0
        assert not is_mounted(place.mnt)


class TestHangup:
    @pytest.mark.parametrize("command", [mounted, served])
    def test_does_nothing_in_the_foreground(self, place: Background, command: object) -> None:
        assert callable(command)
        with foreground(*command(place)) as daemon:
            daemon.send_signal(signal.SIGHUP)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(20) == 0
            assert "upon SIGTERM" in daemon.log

    def test_opens_the_log_of_a_mount_anew(self, place: Background) -> None:
        assert place.mount("-v").code == 0
        pid = place.daemon()
        old = place.log.with_name("log.1")
        place.log.rename(old)
        (place.mnt / "one").mkdir()
        assert not place.log.exists()
        os.kill(pid, signal.SIGHUP)
        wait_for(place.log.exists, "the new log")
        wait_for(lambda: "opened anew" in place.log.read_text(), "its first line")
        before = old.read_text()
        assert "volfs.level: serving" in before
        os.kill(pid, signal.SIGTERM)
        wait_for(place.ended, "the daemon's end")
        assert "unmounting upon SIGTERM" in place.log.read_text()
        assert old.read_text() == before
        assert place.log.stat().st_mode & 0o777 == 0o640
        assert place.log.stat().st_uid == 0

    def test_opens_the_log_of_a_plugin_anew(self, place: Background) -> None:
        words = [word for word in served(place) if word != "-f"]
        assert program(*words, "--log-file", place.log).code == 0
        (pid,) = running("plugin", place.scope)
        try:
            place.log.rename(place.log.with_name("log.1"))
            os.kill(pid, signal.SIGHUP)
            wait_for(place.log.exists, "the new log")
        finally:
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not running("plugin", place.scope), "the daemon's end")
        assert "ending upon SIGTERM" in place.log.read_text()

    def test_while_the_tree_is_in_use(self, place: Background) -> None:
        """It ends nothing, whoever the daemon acts as at that moment."""
        assert place.mount("-v", "--root-mode", "1777").code == 0
        script = f"while mkdir '{place.mnt}/theirs' && rmdir '{place.mnt}/theirs'; do :; done"
        with subprocess.Popen(["sh", "-c", script], user=1000, group=1000, extra_groups=[]) as user:
            try:
                for number in range(20):
                    place.log.rename(place.log.with_name(f"log.{number}"))
                    os.kill(place.daemon(), signal.SIGHUP)
                    wait_for(place.log.exists, "the new log")
                    assert place.log.stat().st_uid == 0
            finally:
                user.kill()
        assert is_mounted(place.mnt)

    def test_a_log_that_cannot_be_opened_anew(self, place: Background) -> None:
        assert place.mount().code == 0
        old = place.log.with_name("log.1")
        place.log.rename(old)
        place.log.mkdir()
        os.kill(place.daemon(), signal.SIGHUP)
        wait_for(lambda: "cannot be opened anew: Is a directory" in old.read_text(), "the word")
        assert is_mounted(place.mnt)
        assert place.umount().code == 0


class TestLog:
    def test_in_a_missing_directory(self, place: Background) -> None:
        place.log = place.log.with_name("none") / "log"
        for words in ((), ("-o", "noexec")):
            result = place.mount(*words)
            assert result.code == 10
            assert f"there is no directory {place.log.parent}; make it, or" in result.err
        assert not place.log.parent.exists()
        assert not is_mounted(place.mnt)
