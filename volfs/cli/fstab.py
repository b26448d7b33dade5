"""``mount.volfs``: what mount(8) runs for the types ``volfs`` and ``fuse.volfs``.

mount(8) looks for helpers in /sbin only, so they are links to this program that an
administrator makes once:

    ln -s "$(command -v mount.volfs)" /sbin/mount.volfs
    ln -s "$(command -v mount.volfs)" /sbin/mount.fuse.volfs

Without the second, mount(8) runs /sbin/mount.fuse for ``fuse.volfs``, which runs ``volfs SCOPE
MOUNTPOINT -o OPTIONS`` if it finds that in its PATH; ``volfs`` passes such a call on to here.
"""

from __future__ import annotations

import getopt
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

import volfs
from volfs.cli.options import OPTIONS, OptionError, make_request, parse_options
from volfs.errors import VolfsError

# The exit codes that mount(8) expects.
_DONE, _WRONG_USAGE, _FAILED = 0, 1, 32


def _help() -> str:
    rows = []
    for option in OPTIONS:
        name = f"{option.name}={option.metavar}" if option.parse else option.name
        rows.append(f"  {name if option.parse else f'{name}, {option.opposite}':<32}{option.help}")
    return """Usage: mount.volfs SCOPE MOUNTPOINT [-sfnv] [-o OPTIONS] [-t TYPE]

The helper of mount(8), for the command line and /etc/fstab:

  mount -t volfs /srv/volumes /mnt/volumes -o cache=never
  /srv/volumes  /mnt/volumes  fuse.volfs  rmdir=empty,nofail  0  0

mount(8) finds it as /sbin/mount.volfs and /sbin/mount.fuse.volfs; link it there:

  ln -s "$(command -v mount.volfs)" /sbin/mount.volfs
  ln -s "$(command -v mount.volfs)" /sbin/mount.fuse.volfs

Options (mount(8) swallows a bare suid or dev: write suid=yes, dev=yes):
{}

Exit codes: 0 mounted, 1 wrong usage, 32 the mount failed.""".format("\n".join(rows))


def main() -> NoReturn:
    """The program ``mount.volfs``."""
    # Wherever it is linked, mount(8) shows this name.
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Mount as the arguments of a mount helper say; return the exit code mount(8) expects."""
    try:
        given, places = getopt.gnu_getopt(argv, "hVsfnvrwo:t:N:", ["help", "version"])
    except getopt.GetoptError as error:
        return _complain(f"{error} (see mount.volfs --help)", _WRONG_USAGE)
    flags = {name for name, _ in given}
    if flags & {"-h", "--help"}:
        sys.stdout.write(_help() + "\n")
        return _DONE
    if flags & {"-V", "--version"}:
        sys.stdout.write(f"mount.volfs, version {volfs.__version__}\n")
        return _DONE
    if len(places) != 2:
        return _complain("needs a scope and a mount point (see mount.volfs --help)", _WRONG_USAGE)
    if "-N" in flags:
        return _complain("mounting in another namespace is not offered", _WRONG_USAGE)
    words = [value for name, value in given if name == "-o"]
    words += [{"-r": "ro", "-w": "rw"}[name] for name, _ in given if name in ("-r", "-w")]
    try:
        # What is not there at boot is a disk that is absent, and to put a directory in its place
        # would let containers fill the disk below.
        request = make_request(
            {"create_scope": False},
            parse_options(",".join(words), from_mount=True, sloppy="-s" in flags),
        )
    except OptionError as error:
        return _complain(str(error), _WRONG_USAGE)
    if "-f" in flags:
        return _DONE

    from volfs.cli import daemon, services
    from volfs.cli.scope import announcing

    scope, mountpoint = (str(Path(place).absolute()) for place in places)
    level = logging.INFO if "-v" in flags else logging.WARNING
    try:
        serve = partial(services.serve_tree, scope, mountpoint, request)
        with announcing(scope):
            daemon.run_in_background(serve, level, request.log_file)
    except VolfsError as error:
        return _complain(str(error), _FAILED)
    except OSError as error:
        return _complain(f"{error.strerror}: {error.filename}", _FAILED)
    return _DONE


def _complain(message: str, code: int) -> int:
    os.write(2, f"mount.volfs: {message}\n".encode(errors="backslashreplace"))
    return code
