"""A mount that the tests of a module share, and directories to compare in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Mounted, mounting, open_workspace

pytest.register_assert_rewrite("tests.mount.comparing")

from tests.mount.comparing import Pair  # noqa: E402

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
