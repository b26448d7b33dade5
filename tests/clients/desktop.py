"""A desktop on a virtual screen, and a file manager on it that is driven by keys."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from tests.children import USER
from tests.clients.programs import DEADLINE, end, require, require_root, run
from tests.conftest import wait_for

PICTURES = Path(__file__).parents[2] / ".artifacts" / "desktop"
"""Pictures of the screen: one for each step of each test, named after both."""

GVFS = Path(__file__).parents[2] / ".artifacts" / "gvfs" / "usr"
"""Where scripts/test unpacks gvfs: installing it would bring udisks and udev."""

GVFSD_TRASH = Path("/usr/libexec/gvfsd-trash")
"""The part of gvfs without which Thunar knows of no trash, and Delete is Shift+Delete."""

_LAY_OVER = 'mount -t overlay -o "lowerdir=$0:/usr" overlay /usr && exec "$@"'

_COPIED_FILES = "x-special/gnome-copied-files"
"""What the clipboard holds after files were copied: the word ``copy``, and a URI a line."""


@dataclass(frozen=True)
class Window:
    number: str
    title: str


class Desktop:
    """A session with a bus, a window manager and no other windows; see ``open_desktop``."""

    def __init__(
        self, shell: subprocess.Popen[str], environment: Mapping[str, str], log: Path, name: str
    ) -> None:
        self._shell = shell
        self._environment = dict(environment)
        self._log = log
        self._name = name
        self._pictures = 0

    def start(self, *command: str | os.PathLike[str]) -> None:
        """Run a program in the session; it ends with the session at the latest."""
        line = shlex.join(os.fspath(word) for word in command)
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{line} >>{shlex.quote(str(self._log))} 2>&1 &\n")
        self._shell.stdin.flush()

    def press(self, *keys: str) -> None:
        """Press keys one after the other, in the active window: ``ctrl+c``, ``Return``."""
        run("xdotool", "key", *keys, env=self._environment)

    def type(self, text: str) -> None:
        run("xdotool", "type", text, env=self._environment)

    def active(self) -> Window:
        """The window that keys go to."""
        number = self._ask("xdotool", "getactivewindow").strip()
        title = self._ask("xdotool", "getwindowname", number).strip() if number else ""
        return Window(number, title)

    def await_window(self, title: str, *, other_than: Window | None = None) -> Window:
        """Wait for the active window to be one whose whole title matches; return it."""
        found: list[Window] = []

        def is_there() -> bool:
            window = self.active()
            if window == other_than or not re.fullmatch(title, window.title):
                return False
            found.append(window)
            return True

        self.wait_for(is_there, f"a window called {title}")
        return found[0]

    def copied(self) -> set[Path]:
        """The files that were last copied, or cut, in a file manager."""
        text = self._ask("xclip", "-selection", "clipboard", "-o", "-t", _COPIED_FILES)
        _, *uris = text.rstrip("\0").splitlines() or [""]
        return {Path(unquote(urlparse(uri).path)) for uri in uris}

    def picture(self, step: str) -> None:
        """Keep a picture of the screen as it is now."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self._pictures += 1
        path = PICTURES / re.sub(r"[^\w.-]+", "-", f"{self._name}-{self._pictures}-{step}.png")
        run("import", "-window", "root", path, env=self._environment)
        print("picture of the screen:", path)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """As ``wait_for`` of the other tests; a failure leaves a picture and the log."""
        try:
            wait_for(condition, what)
        except pytest.fail.Exception:
            self.picture("failed")
            print("the active window:", self.active())
            print("the session's log:", self._log.read_text(errors="replace"), sep="\n")
            raise

    def _ask(self, *command: str) -> str:
        """What a program says about the screen; nothing when it fails."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=self._environment,
            timeout=DEADLINE,
            check=False,
        )
        return done.stdout if done.returncode == 0 else ""


@contextmanager
def open_desktop(directory: Path, name: str, *, gvfs: bool = False) -> Iterator[Desktop]:
    """A desktop of USER, whose home is made in ``directory``; all of it ends with the context.

    ``name`` begins the names of its pictures. ``gvfs`` tells whether its programs have gvfs;
    they do without it otherwise, even where it is installed.
    """
    if gvfs and not GVFSD_TRASH.exists() and not GVFS.exists():
        pytest.skip("gvfs is neither installed nor unpacked by scripts/test")
    require_root()
    require("Xvfb", "dbus-daemon", "openbox", "xdotool", "xclip", "import", "setpriv", "unshare")
    home = directory / "home"
    home.mkdir(mode=0o700)
    os.chown(home, USER, USER)
    log = directory / "desktop.log"
    log.touch()
    os.chown(log, USER, USER)
    bus = home / "bus"
    with ExitStack() as stack:
        display = stack.enter_context(_screen())
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
            "DISPLAY": display,
            "XDG_RUNTIME_DIR": str(home),
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}",
            # Nothing of this machine's devices, settings and assistive technologies.
            "GIO_USE_VOLUME_MONITOR": "unix",
            "GSETTINGS_BACKEND": "memory",
            "GVFS_DISABLE_FUSE": "1",
            "NO_AT_BRIDGE": "1",
        }
        if not gvfs:
            environment["GIO_USE_VFS"] = "local"
        shell = stack.enter_context(_shell(environment, home, gvfs=gvfs))
        desktop = Desktop(shell, environment, log, name)
        desktop.start(
            "dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address=unix:path={bus}"
        )
        desktop.start("openbox")
        desktop.wait_for(
            lambda: bus.exists() and desktop._ask("xdotool", "get_num_desktops"),
            "the window manager",
        )
        yield desktop


@contextmanager
def _screen() -> Iterator[str]:
    """A virtual screen: the display's name."""
    reader, writer = os.pipe()
    try:
        command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1000x700x24"]
        # With -r, a key that a busy machine releases late is not taken as pressed several times.
        command += ["-r", "-nolisten", "tcp", "-noreset"]
        server = subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL, text=True)
    finally:
        os.close(writer)
    try:
        with os.fdopen(reader) as told:
            number = told.readline().strip()
        assert number, f"the X server ended with {server.wait(DEADLINE)}"
        yield f":{number}"
    finally:
        end(server, by=signal.SIGTERM)


@contextmanager
def _shell(
    environment: Mapping[str, str], directory: Path, *, gvfs: bool
) -> Iterator[subprocess.Popen[str]]:
    """A shell that does what is written to it, as USER, and takes all it started with it.

    It is the first process of a pid namespace, so that the kernel kills the others at its end,
    also the services that detached from who started them. The screen cannot be in there: X
    servers see by pid whether a display's number is still taken.
    """
    command = ["unshare", "--pid", "--fork"]
    if gvfs and not GVFSD_TRASH.exists():
        command += ["--mount", "sh", "-c", _LAY_OVER, str(GVFS)]
    command += ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "sh"]
    shell = subprocess.Popen(
        command, stdin=subprocess.PIPE, text=True, env=environment, cwd=directory
    )
    try:
        yield shell
    finally:
        assert shell.stdin is not None
        shell.stdin.close()
        try:
            shell.wait(DEADLINE)
        finally:
            end(shell)
