"""Every request is answered, and nothing but FUSEError leaves a handler."""

from __future__ import annotations

import errno
import inspect
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn, cast

import pyfuse3
import pytest
from pyfuse3 import EntryAttributes, FileHandleT, FileNameT, FUSEError, InodeT, ModeT

from tests.fs.conftest import ROOT, Filesystem, context, fields
from volfs.errors import VolfsError
from volfs.fs.inodes import ROOT_ID
from volfs.fs.plain import VolumeFS

# poll is for devices; the kernel answers it itself once a filesystem does not know it.
# init and stacktrace are no requests.
NOT_OURS = {"poll", "init", "stacktrace"}
REQUESTS = sorted(
    name
    for name, method in vars(pyfuse3.Operations).items()
    if inspect.iscoroutinefunction(method) and name not in NOT_OURS
)


class UnheardOfError(Exception):
    """Something nobody expected."""


class Broken:
    """Stands in for a table, and fails whatever is asked of it."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error

    def __getitem__(self, key: int) -> NoReturn:
        raise self._error


def break_with(fs: Filesystem, error: Exception) -> None:
    broken = cast(Any, Broken(error))
    requests = replace(
        fs.requests,
        names=broken,
        attributes=broken,
        files=broken,
        directories=broken,
        handles=broken,
        inodes=broken,
    )
    fs.operations = VolumeFS(requests, fs.entries)


def request_arguments(name: str) -> list[Any]:
    """Something for every parameter of the request; no inode is the root."""
    given: dict[str, Any] = {
        "name": b"name",
        "name_old": b"old",
        "name_new": b"new",
        "new_name": b"new",
        "target": b"target",
        "value": b"value",
        "buf": b"data",
        "datasync": False,
        "ctx": context(),
        "inode_list": [(ROOT_ID + 1, 1)],
        "attr": EntryAttributes(),
        "fields": fields(update_mode=True),
    }
    parameters = list(inspect.signature(getattr(VolumeFS, name)).parameters)[1:]
    return [given.get(parameter, ROOT_ID + 1) for parameter in parameters]


def test_there_are_as_many_requests_as_are_known() -> None:
    assert len(REQUESTS) == 29


@pytest.mark.parametrize("name", REQUESTS)
def test_request_is_implemented(name: str) -> None:
    assert name in vars(VolumeFS)
    ours = inspect.signature(getattr(VolumeFS, name)).parameters
    theirs = inspect.signature(getattr(pyfuse3.Operations, name)).parameters
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("name", sorted({*REQUESTS} - {"forget", "access"}))
async def test_unexpected_error_is_eio_with_a_traceback(
    fs: Filesystem, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    break_with(fs, UnheardOfError("unheard of"))
    with pytest.raises(FUSEError) as raised:
        await getattr(fs.operations, name)(*request_arguments(name))
    assert raised.value.errno == errno.EIO
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert name in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is UnheardOfError


@pytest.mark.parametrize("name", sorted({*REQUESTS} - {"forget", "access"}))
@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "quota"), errno.EDQUOT),
        (PermissionError(errno.EACCES, "no"), errno.EACCES),
        # EMFILE would mean a limit of the caller's.
        (OSError(errno.EMFILE, "too many"), errno.ENFILE),
        (OSError(errno.ENFILE, "too many"), errno.ENFILE),
        (OSError("an OSError without errno"), errno.EIO),
        (FUSEError(errno.ENOLINK), errno.ENOLINK),
    ],
    ids=["ENOSPC", "EDQUOT", "EACCES", "EMFILE", "ENFILE", "none", "FUSEError"],
)
async def test_error_of_a_system_call_is_the_answer(
    fs: Filesystem, caplog: pytest.LogCaptureFixture, name: str, error: Exception, answer: int
) -> None:
    break_with(fs, error)
    with pytest.raises(FUSEError) as raised:
        await getattr(fs.operations, name)(*request_arguments(name))
    assert raised.value.errno == answer
    assert not caplog.records


def subclasses(cls: type[VolfsError]) -> list[type[VolfsError]]:
    return [cls] + [found for sub in cls.__subclasses__() for found in subclasses(sub)]


@pytest.mark.parametrize("kind", subclasses(VolfsError), ids=lambda kind: kind.__name__)
async def test_error_of_the_store_is_its_errno(
    fs: Filesystem, caplog: pytest.LogCaptureFixture, kind: type[VolfsError]
) -> None:
    break_with(fs, kind("says why"))
    with pytest.raises(FUSEError) as raised:
        await fs.operations.rmdir(ROOT, FileNameT(b"vol"), context())
    assert raised.value.errno == kind.errno
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_forget_never_fails(fs: Filesystem, caplog: pytest.LogCaptureFixture) -> None:
    break_with(fs, UnheardOfError("unheard of"))
    await fs.operations.forget([(InodeT(7), 1)])
    (record,) = caplog.records
    assert record.exc_info is not None


async def test_access_is_left_to_the_kernel(fs: Filesystem) -> None:
    with pytest.raises(FUSEError) as raised:
        await fs.operations.access(ROOT, os.R_OK, context())
    assert raised.value.errno == errno.ENOSYS


UnknownRequest = Callable[[Filesystem], Any]


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in REQUESTS
        if "inode" in inspect.signature(getattr(VolumeFS, name)).parameters and name != "access"
    ],
)
async def test_unknown_node_is_stale(fs: Filesystem, name: str) -> None:
    with pytest.raises(FUSEError) as raised:
        await getattr(fs.operations, name)(*request_arguments(name))
    assert raised.value.errno == errno.ESTALE


@pytest.mark.parametrize("name", ["read", "write", "fsync", "readdir", "fsyncdir"])
async def test_unknown_handle_is_ebadf(fs: Filesystem, name: str) -> None:
    with pytest.raises(FUSEError) as raised:
        await getattr(fs.operations, name)(*request_arguments(name))
    assert raised.value.errno == errno.EBADF


@pytest.mark.parametrize("name", ["release", "releasedir"])
async def test_closing_what_is_not_open_does_nothing(fs: Filesystem, name: str) -> None:
    await getattr(fs.operations, name)(FileHandleT(99))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("create", (ROOT, b"f", ModeT(0o644), os.O_WRONLY)),
        ("mknod", (ROOT, b"f", ModeT(0o100644), 0)),
        ("symlink", (ROOT, b"f", b"target")),
        ("unlink", (ROOT, b"f")),
    ],
)
async def test_root_holds_only_directories(
    fs: Filesystem, name: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(FUSEError) as raised:
        await getattr(fs.operations, name)(*arguments, context())
    assert raised.value.errno == errno.EPERM
