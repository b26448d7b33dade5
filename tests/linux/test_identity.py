"""Who sent a request, as far as /proc tells."""

from __future__ import annotations

import os
import subprocess

from tests.children import needs_root
from tests.idmapping import process_in_user_namespace
from volfs.linux import syscalls
from volfs.linux.identity import NOBODY, UNKNOWN, Process, keeps_setgid, process, who


class Request:
    """What came with a request."""

    umask = 0

    def __init__(self, uid: int, gid: int, pid: int) -> None:
        self.uid, self.gid, self.pid = uid, gid, pid


@needs_root
def test_who_a_process_is() -> None:
    child = subprocess.Popen(["sleep", "60"], user=1000, group=1000, extra_groups=[2000, 20000])
    try:
        assert process(child.pid) == Process(1000, frozenset({1000, 2000, 20000}), 0)
        assert who(Request(UNKNOWN, UNKNOWN, child.pid)) == process(child.pid)
        # What came with the request is what the kernel takes it for.
        assert who(Request(5, 6, child.pid)) == Process(5, frozenset({6, 1000, 2000, 20000}), 0)
        for gid, member in ((1000, True), (2000, True), (20000, True), (200, False), (0, False)):
            assert keeps_setgid(Request(1000, 1000, child.pid), gid) == member
            assert keeps_setgid(Request(UNKNOWN, UNKNOWN, child.pid), gid) == member
    finally:
        child.kill()
        child.wait()
    for pid in (child.pid, 0):
        assert process(pid) == NOBODY
        assert not keeps_setgid(Request(1000, 1000, pid), 2000)
        assert keeps_setgid(Request(1000, 1000, pid), 1000)


@needs_root
def test_capabilities_of_another_user_namespace_do_not_count() -> None:
    assert process(os.getpid()).has(syscalls.CAP_FSETID)
    with process_in_user_namespace() as pid:
        assert process(pid).capabilities == 0
        assert not keeps_setgid(Request(0, 0, pid), 5)
