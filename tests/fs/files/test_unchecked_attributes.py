"""Extended attributes that the kernel leaves to the filesystem to check."""

from __future__ import annotations

import errno
import os

import pytest
from pyfuse3 import FUSEError, XAttrNameT

from tests.fs.conftest import Filesystem, context
from volfs.linux import calls


@pytest.mark.parametrize("name", [b"system.nfs4_acl", b"system.ntfs_acl", b"system.", b"system.x"])
async def test_are_not_touched_on_a_filesystem_that_has_them(
    fs: Filesystem, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    """There they would be done as root, for anybody."""
    node, _ = fs.volume()
    done: list[str] = []
    monkeypatch.setattr(os, "setxattr", lambda *arguments: done.append("set"))
    monkeypatch.setattr(os, "removexattr", lambda *arguments: done.append("removed"))
    monkeypatch.setattr(calls, "getxattr", lambda *arguments: done.append("got"))
    stranger = context(1000, 1000)
    for attempt in (
        fs.operations.setxattr(node, XAttrNameT(name), b"value", stranger),
        fs.operations.getxattr(node, XAttrNameT(name), stranger),
        fs.operations.removexattr(node, XAttrNameT(name), stranger),
    ):
        with pytest.raises(FUSEError) as caught:
            await attempt
        assert caught.value.errno == errno.EOPNOTSUPP
    assert done == []
