"""A mount that the tests of a module share, and directories to compare in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Mounted, mounting, open_workspace

pytest.register_assert_rewrite("tests.mount.comparing", "tests.mount.locking")

from tests.mount.comparing import Pair  # noqa: E402
from tests.mount.locker import Locker  # noqa: E402
from tests.mount.locking import KINDS, Sides  # noqa: E402
from tests.mount.open_files import wait_until_idle  # noqa: E402

_numbers = itertools.count()


@pytest.fixture(scope="module")
def shared() -> Iterator[Mounted]:
    """A mount with the default options, for all tests of the module."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        yield mount()


@pytest.fixture
def pair(shared: Mounted) -> Pair:
    """A new volume of the shared mount, and a plain directory beside the scope."""
    return make_pair(shared)


def make_pair(tree: Mounted) -> Pair:
    """A new volume of ``tree`` and a plain directory with the same owner and mode."""
    name = f"volume{next(_numbers)}"
    mounted = tree.mnt / name
    mounted.mkdir()
    native: Path = tree.scope.parent / f"plain-{name}"
    native.mkdir()
    return Pair(mounted, tree.data(name), native)


@pytest.fixture
def nothing_is_kept(shared: Mounted) -> Iterator[None]:
    """When a test has closed its files and mappings, nobody holds a backing file any more."""
    yield
    wait_until_idle(shared)


@pytest.fixture(scope="module", params=["nosuid", "suid"])
def trees(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A mount that remembers for long, without and with setuid bits that count."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        yield mount(cache="always", suid=request.param == "suid")


@pytest.fixture
def remembering(trees: Mounted) -> Pair:
    """A volume in such a mount: what is seen at once is not only what timed out."""
    return make_pair(trees)


@pytest.fixture(scope="module")
def nested(shared: Mounted) -> Iterator[Mounted]:
    """A tree whose scope lies in another, and so is taken for a network filesystem."""
    (shared.mnt / "below").mkdir()
    scope = shared.mnt / "below/scope"
    scope.mkdir()
    with open_workspace() as workspace, mounting(workspace) as mount:
        yield mount(scope=scope, no_passthrough=True)


@pytest.fixture(params=KINDS)
def sides(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Sides]:
    """A file and two processes, where KINDS or what ``everywhere`` adds has them."""
    kind = request.param
    if kind in KINDS:
        tops = {
            "native": (pair.native, pair.native),
            "tree": (pair.mounted, pair.mounted),
            "out": (pair.mounted, pair.data),
            "in": (pair.data, pair.mounted),
        }[kind]
    else:
        tree: Mounted = request.getfixturevalue("nested")
        below: Mounted = request.getfixturevalue("shared")
        volume = pair.native.name
        (tree.mnt / volume).mkdir()
        data = below.data("below") / tree.data(volume).relative_to(below.mnt / "below")
        tops = (tree.mnt / volume, data if kind == "nested-out" else tree.mnt / volume)
    (tops[0] / "file").write_bytes(b"content" * 10)
    with Locker() as one, Locker() as other:
        yield Sides(one, other, tops[0] / "file", tops[1] / "file", kind)
