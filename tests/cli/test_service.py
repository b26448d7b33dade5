"""The service file that is shipped."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

UNIT = files("volfs").joinpath("volfs@.service").read_text()
PRIVATE = (
    *("PrivateTmp", "PrivateMounts", "PrivateDevices", "PrivateUsers", "PrivateIPC"),
    *("ProtectSystem", "ProtectHome", "ProtectKernelTunables", "ProtectKernelModules"),
    *("ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "ProcSubset"),
    *("ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths", "BindPaths", "TemporaryFileSystem"),
    *("RootDirectory", "RootImage", "MountFlags", "DynamicUser", "MountAPIVFS", "StateDirectory"),
)
"""Settings that give a service a mount namespace of its own (systemd.exec(5)) or would, in
some versions of systemd."""


def settings() -> Iterator[tuple[str, str]]:
    for line in UNIT.splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            yield key, value


def test_systemd_takes_it(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # It checks that the program is there, which depends on where volfs was installed.
    text = UNIT.replace("ExecStart=volfs", f"ExecStart={sys.executable} -m volfs")
    unit = tmp_path / "volfs@mnt-volumes.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_tree_is_not_hidden_from_everybody_else() -> None:
    assert not {key for key, _ in settings()} & set(PRIVATE)


def test_the_command_is_one_that_volfs_understands() -> None:
    import click

    from volfs.cli.mounting import mount

    command = dict(settings())["ExecStart"]
    words = command.replace("${VOLFS_OPTIONS}", "defaults").replace("%f", "/mnt/volumes").split()
    assert words[:2] == ["volfs", "mount"]
    with click.Context(mount) as context:
        mount.parse_args(context, words[2:])
    assert context.params["foreground"]
    assert context.params["o"] == ("defaults",)
    assert context.params["places"] == ("/mnt/volumes",)


def test_it_may_do_what_the_daemon_does() -> None:
    """Each of these lets the tree do something that tests of it rely on."""
    granted: set[str] = set()
    for key, value in settings():
        if key == "CapabilityBoundingSet":
            granted.update(value.split())
    needed = ["SYS_ADMIN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "CHOWN", "FOWNER", "FSETID"]
    needed += ["SETUID", "SETGID", "MKNOD", "SETFCAP"]
    assert {f"CAP_{name}" for name in needed} <= granted
    assert "CAP_SYS_PTRACE" in granted, "to see the mounts of others"
