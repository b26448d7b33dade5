"""File capabilities: kept as they are told, and gone with any change of the file."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.children import MEMBERS, USER, run_as
from tests.mount.capabilities import CAPABILITY, capability
from tests.mount.changing import CHANGES, CHANGES_BY_NAME, change
from tests.mount.comparing import Pair
from tests.mount.test_reading_and_writing import content


@pytest.mark.no_data
def test_setcap_and_getcap(pair: Pair) -> None:
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where users have no PATH to
    setcap, getcap = (shutil.which(name, path=search) for name in ("setcap", "getcap"))
    if not setcap or not getcap:
        pytest.skip("setcap is missing (Debian package libcap2-bin)")

    def operation(top: Path) -> str:
        (top / "program").write_bytes(b"")
        subprocess.run([setcap, "cap_net_raw=ep", "program"], cwd=top, check=True)
        return subprocess.run(
            [getcap, "program"], cwd=top, check=True, capture_output=True, text=True
        ).stdout

    assert "cap_net_raw=ep" in str(pair.same(operation))
    assert os.getxattr(pair.data / "program", "security.capability")


@pytest.mark.no_data
@pytest.mark.parametrize("uid", [0, USER], ids=["root", "user"])
def test_file_capabilities_are_removed_by_changes(pair: Pair, uid: int) -> None:
    def operation(top: Path) -> list[str]:
        told = []
        for name, how in CHANGES_BY_NAME.items():
            path = top / name
            path.write_bytes(b"content")
            path.chmod(0o777)
            os.chown(path, uid, uid)
            os.setxattr(path, "security.capability", CAPABILITY)
            assert capability(path) == CAPABILITY
            run_as(partial(how, path), uid, groups=[MEMBERS])
            told.append(f"{name}: {capability(path)!r}")
        return told

    pair.same(operation)
    for path in pair.data.iterdir():
        native = pair.native / path.name
        assert capability(path) == capability(native), path.name


@pytest.mark.parametrize("uid", [0, USER], ids=["root", "user"])
@pytest.mark.parametrize("how", CHANGES)
def test_file_capabilities_go_at_once_with_any_change(
    remembering: Pair, how: str, uid: int
) -> None:
    def operation(top: Path) -> list[object]:
        source, path = top / "source", top / "program"
        source.write_bytes(content(9000))
        told: list[object] = []
        for opened_before in (False, True):
            path.write_bytes(content(5000, 2))
            path.chmod(0o777)
            with ExitStack() as stack:
                if opened_before:
                    file = stack.enter_context(path.open("r+b", buffering=0))
                    reader = stack.enter_context(source.open("rb", buffering=0))
                    work = partial(CHANGES[how], file.fileno(), reader.fileno())
                else:
                    work = partial(change, path, source, CHANGES[how])
                os.setxattr(path, "security.capability", CAPABILITY)
                assert capability(path) == CAPABILITY
                run_as(work, uid)
                told.append(capability(path))
            told.append(capability(remembering.behind(path)))
        return told

    assert remembering.same(operation) == ["ENODATA"] * 4
