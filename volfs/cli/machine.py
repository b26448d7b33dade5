"""What this machine offers to volfs, checked one by one."""

from __future__ import annotations

import ctypes
import errno
import gzip
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from volfs.cli.scope import default_scope
from volfs.cli.services import default_socket
from volfs.docker.listener import answers
from volfs.errors import PluginError
from volfs.linux import syscalls
from volfs.linux.mountinfo import MountTable
from volfs.store import tree_mounts

_APT = "sudo apt-get install -y"
_FUSE_DEVICE = Path("/dev/fuse")
_PASSTHROUGH_KERNEL = (6, 9)
_ENOUGH_DESCRIPTORS = 4096
_FUSE_CONF = Path("/etc/fuse.conf")
_HELPERS = ("/sbin/mount.volfs", "/sbin/mount.fuse.volfs")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. ``missing`` keeps volfs from mounting, ``limited`` does not.

    ``fix`` is a command (for Debian) or, where none would do, what to change; empty when there is
    nothing to do.
    """

    name: str
    status: Literal["ok", "limited", "missing"]
    detail: str
    fix: str = ""


def examine(scope: str | None) -> Iterator[Finding]:
    """Yield the findings about this machine and ``scope`` (None: the default one)."""
    yield _python()
    yield _pyfuse3()
    yield _libfuse()
    yield _kernel()
    yield _device()
    yield _fusermount()
    yield _mounting()
    yield _level()
    yield _allow_other()
    yield _descriptors()
    yield from _scope(Path(scope or default_scope()).absolute())
    yield _helpers()
    yield from _trees(scope or default_scope())
    yield from _plugin()


def _python() -> Finding:
    return Finding("python", "ok", platform.python_version())


def _pyfuse3() -> Finding:
    with suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("pyfuse3")
        try:
            import pyfuse3  # noqa: F401
        except ImportError as error:
            return Finding("pyfuse3", "missing", f"{version}, but: {error}", f"{_APT} libfuse3-3")
        return Finding("pyfuse3", "ok", version)
    fix = f"{_APT} libfuse3-dev pkg-config gcc python3-dev && pip install pyfuse3"
    return Finding("pyfuse3", "missing", "not installed", fix)


def _libfuse() -> Finding:
    # The one that pyfuse3 brought into this process, whatever else is installed.
    maps = Path("/proc/self/maps").read_text(errors="replace")
    path = next(iter(re.findall(r"/\S*libfuse3\S*\.so\S*", maps)), None)
    if path is None:
        return Finding("libfuse", "missing", "not found", f"{_APT} fuse3 libfuse3-3")
    library = ctypes.CDLL(path)
    library.fuse_pkgversion.restype = ctypes.c_char_p
    version = library.fuse_pkgversion()
    return Finding("libfuse", "ok", version.decode() if version else path)


def _kernel() -> Finding:
    release = platform.release()
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if version < _PASSTHROUGH_KERNEL:
        return Finding("kernel", "limited", f"{release}: no FUSE passthrough before 6.9")
    configured = _kernel_option("CONFIG_FUSE_PASSTHROUGH")
    if configured is False:
        return Finding("kernel", "limited", f"{release}: built without FUSE passthrough")
    if os.geteuid() != 0:
        return Finding("kernel", "ok", f"{release} (FUSE passthrough is for root only)")
    return Finding("kernel", "ok", f"{release}, with FUSE passthrough")


def _kernel_option(name: str) -> bool | None:
    """Tell whether the kernel was built with an option; None where nothing says."""
    for path in (f"/boot/config-{platform.release()}", "/proc/config.gz"):
        with suppress(OSError):
            data = Path(path).read_bytes()
            text = gzip.decompress(data) if path.endswith(".gz") else data
            return f"\n{name}=y".encode() in text
    return None


def _device() -> Finding:
    try:
        fd = os.open(_FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        real = stat.S_ISCHR(os.fstat(fd).st_mode)
        os.close(fd)
        if not real:
            raise OSError(errno.ENODEV, "is no device")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            fix = "sudo modprobe fuse (in a container: start it with --device /dev/fuse)"
        elif error.errno in (errno.EACCES, errno.EPERM):
            fix = "sudo chmod 0666 /dev/fuse (in a container: start it with --device /dev/fuse)"
        else:
            fix = "sudo modprobe -r fuse; sudo modprobe fuse"
        return Finding("/dev/fuse", "missing", error.strerror or str(error), fix)
    return Finding("/dev/fuse", "ok", "can be opened")


def _fusermount() -> Finding:
    program = shutil.which("fusermount3")
    root = os.geteuid() == 0
    if program is None:
        status: Literal["limited", "missing"] = "limited" if root else "missing"
        detail = "not installed; root mounts without it" if root else "not installed"
        return Finding("fusermount3", status, detail, f"{_APT} fuse3")
    found = Path(program).stat()
    if not root and not (found.st_mode & stat.S_ISUID and found.st_uid == 0):
        fix = f"sudo chown root {program} && sudo chmod 4755 {program}"
        return Finding("fusermount3", "missing", f"{program} is not set-user-id root", fix)
    return Finding("fusermount3", "ok", program)


def _mounting() -> Finding:
    """Try it: mount nothing in particular on a directory of its own, and unmount it."""
    directory = tempfile.mkdtemp(prefix="volfs-doctor-")
    try:
        (_try_as_root if os.geteuid() == 0 else _try_as_user)(directory)
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "see /dev/fuse and fusermount3 above"
        if error.errno in (errno.EPERM, errno.EACCES) and os.geteuid() == 0:
            fix = "in a container: start it with --cap-add SYS_ADMIN --device /dev/fuse"
        elif error.errno == errno.ENODEV:
            fix = "sudo modprobe fuse"
        elif "mtab" in reason:
            fix = "sudo ln -s ../proc/self/mounts /etc/mtab"
        return Finding("mounting", "missing", reason, fix)
    finally:
        with suppress(OSError):
            Path(directory).rmdir()
    how = "by mount(2)" if os.geteuid() == 0 else "by fusermount3"
    return Finding("mounting", "ok", f"works, {how}")


def _try_as_root(directory: str) -> None:
    device = os.open(_FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        target = os.fsencode(directory)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount(b"volfs-doctor", target, b"fuse", flags, options)
        syscalls.umount2(target, syscalls.MNT_DETACH)
    finally:
        os.close(device)


def _try_as_user(directory: str) -> None:
    # fusermount3 hands the descriptor of the mounted device back over a socket.
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _fusermount3("-o", "fsname=volfs-doctor", "--", directory, socket=theirs.fileno())
    _fusermount3("-u", "-z", "--", directory)


def _fusermount3(*words: str, socket: int | None = None) -> None:
    environment = {**os.environ, "_FUSE_COMMFD": str(socket)}
    done = subprocess.run(
        ["fusermount3", *words],
        env=environment,
        pass_fds=[] if socket is None else [socket],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(
            errno.EPERM, done.stderr.strip() or f"fusermount3 ended with {done.returncode}"
        )


def _level() -> Finding:
    """How much of the work the kernel itself can do."""
    try:
        from volfs.fs.mount.level import Level, highest_level
    except ImportError:
        return Finding("level", "limited", "not known without pyfuse3")
    level, why = highest_level()
    kernel = _kernel()
    if level is Level.PASSTHROUGH and kernel.status == "limited":
        level, why = Level.TAP, kernel.detail
    if level is Level.PASSTHROUGH:
        return Finding("level", "ok", "passthrough: the kernel reads and writes files itself")
    if level is Level.TAP:
        return Finding("level", "limited", f"tap: {why}")
    fix = f"{_APT} gcc python3-dev, and install volfs anew"
    return Finding("level", "limited", f"plain: {why}", fix)


def _trees(scope: str) -> Iterator[Finding]:
    """The scope's trees that are mounted, and at which level they are served."""
    for mountpoint in tree_mounts(os.path.realpath(scope)):
        try:
            told = json.loads(os.getxattr(mountpoint, "volfs.stats"))
        except OSError as error:
            fix = f"volfs umount {mountpoint}"
            yield Finding("tree", "limited", f"{mountpoint}: {error.strerror}", fix)
            continue
        why = f" ({told['why']})" if told["why"] else ""
        yield Finding("tree", "ok", f"{mountpoint}: level {told['level']}{why}")


def _plugin() -> Iterator[Finding]:
    """The volume plugin, where there is one or was one."""
    try:
        path = default_socket()
        if not os.path.lexists(path):
            return
        served = answers(path)
    except (PluginError, OSError):
        return
    if served:
        yield Finding("plugin", "ok", f"served at {path}")
    else:
        fix = "volfs mount --plugin, or volfs plugin"
        yield Finding("plugin", "limited", f"nobody answers at {path}: its daemon is gone", fix)


def _allow_other() -> Finding:
    if os.geteuid() == 0:
        return Finding("allow-other", "ok", "always for root")
    with suppress(OSError):
        if any(line.strip() == "user_allow_other" for line in _FUSE_CONF.read_text().split("\n")):
            return Finding("allow-other", "ok", f"user_allow_other is in {_FUSE_CONF}")
    fix = f"echo user_allow_other | sudo tee -a {_FUSE_CONF}"
    return Finding("allow-other", "limited", "your mounts are for you alone", fix)


def _descriptors() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _ENOUGH_DESCRIPTORS:
        fix = "raise it: LimitNOFILE= in the service file, or 'nofile' in limits.conf(5)"
        return Finding("open files", "limited", f"at most {hard}: large trees get slow", fix)
    shown = "unlimited" if hard == resource.RLIM_INFINITY else f"at most {hard}"
    return Finding("open files", "ok", shown)


def _scope(scope: Path) -> Iterator[Finding]:
    there = scope
    # Unlike Path.exists this raises nothing where we may not look.
    while not os.path.exists(there) and there != there.parent:
        there = there.parent
    way = MountTable.of_process().way_to(os.path.realpath(there))
    kind = way[-1].fstype if way else "an unknown filesystem"
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        fix = f"sudo install -d -o {os.getuid()} {scope}, or another --scope"
        yield Finding("scope", "missing", f"{scope}: no permission in {there}", fix)
        return
    detail = f"{scope} on {kind}" if there == scope else f"{scope} (not made yet) on {kind}"
    yield Finding("scope", "ok", detail)
    for name, works, otherwise in (
        ("file handles", _has_file_handles(there), "many open files at once need more descriptors"),
        ("xattrs", _has_xattr(there, "user.volfs"), "no extended attributes in volumes"),
        ("ACLs", _has_xattr(there, "system.posix_acl_access"), "no access control lists"),
    ):
        if works:
            yield Finding(name, "ok", f"work on {kind}")
        else:
            yield Finding(name, "limited", f"{kind} has none: {otherwise}")


def _has_file_handles(directory: Path) -> bool:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file_handle, _ = syscalls.name_to_handle_at(fd)
        if os.geteuid() == 0:
            os.close(syscalls.open_by_handle_at(fd, file_handle, os.O_PATH))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _has_xattr(directory: Path, name: str) -> bool:
    try:
        os.getxattr(directory, name)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def _helpers() -> Finding:
    if all(os.access(path, os.X_OK) for path in _HELPERS):
        return Finding("mount(8)", "ok", f"helpers are {' and '.join(_HELPERS)}")
    beside = str(Path(sys.executable).parent)
    program = shutil.which("mount.volfs", path=beside) or "$(command -v mount.volfs)"
    fix = " && ".join(f"sudo ln -sf {program} {path}" for path in _HELPERS)
    return Finding("mount(8)", "limited", "no helper for fstab and mount -t volfs", fix)
