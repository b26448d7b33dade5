"""The service file that is shipped."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path

import pytest

from tests import levels
from tests.cli.running import SERVING, elsewhere, process, volfs
from tests.daemons import ServiceManager, foreground
from tests.interpreter import PROGRAM

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
    from volfs.cli.options import make_request, parse_options

    command = dict(settings())["ExecStart"]
    words = command.replace("${VOLFS_OPTIONS}", "defaults").replace("%f", "/mnt/volumes").split()
    assert words[:2] == ["volfs", "mount"]
    with click.Context(mount) as context:
        mount.parse_args(context, words[2:])
    assert context.params["foreground"]
    (options,) = context.params["o"]
    assert not make_request(parse_options(options)).create_scope
    # What an administrator says counts.
    told = options.replace("defaults", "create-scope,ro")
    assert make_request(parse_options(told)).create_scope
    assert context.params["places"] == ("/mnt/volumes",)


@pytest.mark.skipif(os.getuid() != 0, reason="dropping capabilities needs root")
def test_the_capabilities_left_are_enough(workspace: Path) -> None:
    granted = [
        word.removeprefix("CAP_").lower()
        for key, value in settings()
        if key == "CapabilityBoundingSet"
        for word in value.split()
    ]
    assert "sys_ptrace" in granted, "to see the mounts of others"
    left = ",".join(["-all", *(f"+{name}" for name in granted)])
    limits = ["setpriv", "--bounding-set", left, "--inh-caps", "-all", "--no-new-privs"]
    scope, mnt = workspace / "scope", workspace / "mnt"
    for directory in (mnt, scope / "volumes"):
        directory.mkdir(parents=True)
    with (
        ServiceManager(workspace / "notify") as manager,
        foreground(
            *["mount", "-f", "-o", "dev,suid", *levels.mount_options(), str(scope), str(mnt)],
            environment=manager.environment,
            command=[*limits, *PROGRAM],
        ) as daemon,
    ):
        assert "READY=1" in manager.told()
        (vol := mnt / "vol").mkdir()
        (file := vol / "file").touch()
        os.chown(file, 1234, 5678)
        file.chmod(0o6755)
        os.setxattr(file, "trusted.x", b"1")
        os.mknod(vol / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        script = f"echo x >'{mnt}/vol/theirs'"
        vol.chmod(0o1777)
        subprocess.run(["sh", "-ec", script], user=65534, group=65534, extra_groups=[], check=True)
        assert stat.S_IMODE(file.stat().st_mode) == 0o6755
        assert (vol / "theirs").stat().st_uid == 65534
        with process_elsewhere(vol, workspace):
            assert volfs("rm", "--scope", scope, "vol").code == 6
            with pytest.raises(OSError, match="busy"):
                vol.rmdir()
        vol.rmdir()
        daemon.terminate()
        assert daemon.wait(20) == 0
        assert daemon.stderr
        log = daemon.stderr.read()
        assert re.fullmatch(SERVING, log)


def process_elsewhere(vol: Path, workspace: Path) -> AbstractContextManager[int]:
    """A process in another namespace in which ``vol`` is mounted a second time."""
    (target := workspace / "target").mkdir()
    return process(*elsewhere(f"mount --bind '{vol}' '{target}'"))
