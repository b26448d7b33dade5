"""The same random system calls by four users natively and in a tree come to the same.

Only when asked for, as it still comes upon known differences for which there are no rules yet:

    VOLFS_LIKENESS=100000 pytest tests/mount/test_likeness.py -s --level tap

does so many calls, and prints how many there were of each kind and how many succeeded. They are
done in rounds of 3000, each of which begins anew and has a seed of its own, the next number.
VOLFS_LIKENESS_SEED=N has the first round begin with that.

Of a difference the seed, the step, the call and both results are told. The steps that it takes to
show it are in .artifacts/likeness, and are done again with VOLFS_LIKENESS_REPLAY=FILE. What is a
known difference is in tests/mount/likeness/rules.py, so that it is not come upon again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests import levels
from tests.children import needs_root
from tests.conftest import mounting, open_workspace
from tests.filesystems import ext4
from tests.mount.likeness.calls import Step
from tests.mount.likeness.comparison import Comparison
from tests.mount.likeness.records import load, save
from tests.mount.likeness.report import DifferenceError, said_of
from tests.mount.likeness.shortening import shorten

CALLS = int(os.environ.get("VOLFS_LIKENESS", 0))
SEED = os.environ.get("VOLFS_LIKENESS_SEED")
REPLAY = os.environ.get("VOLFS_LIKENESS_REPLAY")
ASKED = CALLS > 0 or REPLAY is not None

ROUND = 3000
SHORTENING = 120.0
"""Seconds."""
ENOUGH = 200
"""So often a call has to be made before it can be told how much of it succeeds."""

ARTIFACTS = Path(__file__).parent.parent.parent / ".artifacts/likeness"

pytestmark = [needs_root, pytest.mark.timeout(0)]


@pytest.fixture
def comparison() -> Iterator[Comparison]:
    """On two filesystems of the same kind, one of them with a scope."""
    with ExitStack() as stack:
        workspace = stack.enter_context(open_workspace())
        native = stack.enter_context(ext4(workspace / "native", size=1 << 30))
        disk = stack.enter_context(ext4(workspace / "disk", size=1 << 30))
        mount = stack.enter_context(mounting(workspace))
        (disk / "scope").mkdir()
        tree = mount(scope=disk / "scope", suid=True, dev=True, keep_removed="0")
        yield stack.enter_context(closing(Comparison(native, tree.mnt, levels.chosen())))


def described(comparison: Comparison, difference: DifferenceError, name: str) -> str:
    """A difference, with the steps that it takes to show it."""
    latest = difference

    def shows(steps: list[Step]) -> bool:
        nonlocal latest
        try:
            comparison.replay(steps)
        except DifferenceError as found:
            if found.kind == difference.kind:
                latest = found
                return True
        return False

    steps = shorten(difference.steps, shows, SHORTENING)
    save(ARTIFACTS / f"{name}.all", difference.steps)
    save(ARTIFACTS / name, steps)
    lines = [str(difference), f"{len(steps)} steps show it, see {ARTIFACTS / name}"]
    if latest is not difference:
        lines += [f"  {said_of(step)}" for step in steps[-30:]]
        lines.append(str(latest))
    return "\n".join(lines)


def random_calls_come_to_the_same(comparison: Comparison) -> None:
    if REPLAY is not None:
        replay(comparison, Path(REPLAY))
        return
    level = levels.chosen()
    seed = int(SEED) if SEED else secrets.randbelow(10**6)
    print(f"level {level}, {CALLS} calls, seed {seed}")
    found: dict[tuple[str, str], str] = {}
    left = CALLS
    while left > 0:
        try:
            comparison.random(seed, min(left, ROUND))
        except DifferenceError as difference:
            if difference.kind not in found:
                found[difference.kind] = described(comparison, difference, f"{level}-{seed}")
                print(found[difference.kind])
        seed += 1
        left -= ROUND
    tally = comparison.tally
    print(tally.table())
    assert not found, "\n\n".join(found.values())
    # Where all fails nothing is compared.
    assert tally.succeeded.total() > 0.6 * tally.made.total()
    often = [name for name, count in tally.made.items() if count > ENOUGH]
    assert [name for name in often if tally.share(name) < 0.5] == []


def replay(comparison: Comparison, path: Path) -> None:
    """Do the sequence in a file again."""
    try:
        comparison.replay(load(path))
    except DifferenceError as difference:
        pytest.fail(described(comparison, difference, path.name))


if ASKED:
    test_random_calls_come_to_the_same = random_calls_come_to_the_same
