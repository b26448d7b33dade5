"""Comparison: the same steps natively and in a tree, side by side."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from random import Random

from tests.levels import Level
from tests.mount.likeness.calls import OWNER, ROOT, USERS, Outcome, Step
from tests.mount.likeness.generator import Generator
from tests.mount.likeness.judging import Judge
from tests.mount.likeness.performers import Company
from tests.mount.likeness.report import DifferenceError, Tally
from tests.mount.likeness.rules import Rules
from tests.mount.likeness.world import World

_DEEP = 8
"""So many directories below a volume all is done, so that no ".." leads out of it."""


class Comparison:
    """A company of users in a plain directory, and one in a tree that is served at this level.

    Each sequence is done in a directory of its own, which in the tree is a volume.

    ``tally`` counts what was done at random.
    """

    def __init__(self, native: Path, tree: Path, level: Level) -> None:
        self._level = level
        self._directories = native, tree
        self._native, self._tree = Company(), Company()
        self._grounds = 0
        self.tally = Tally()

    def close(self) -> None:
        """End all users."""
        self._native.close()
        self._tree.close()

    def random(self, seed: int, count: int) -> None:
        """Do so many random steps in a new place. Raises DifferenceError."""
        tops = self._enter()
        world = World()
        generator = Generator(Random(seed), world, Rules(self._level, world), tops[0])
        judge = self._judge()
        done: list[Step] = []
        try:
            while len(done) < count:
                burst = generator.burst(count - len(done))
                outcomes = self._do(burst, judge, done)
                for step, outcome in zip(burst, outcomes, strict=True):
                    self.tally.add(step, outcome)
                generator.learn(outcomes)
            self._compare_everything(tops, judge, done)
        except DifferenceError as difference:
            difference.seed = seed
            raise
        finally:
            self._leave(tops)

    def replay(self, steps: Sequence[Step]) -> None:
        """Do these steps in a new place. Raises DifferenceError."""
        tops = self._enter()
        judge = self._judge()
        done: list[Step] = []
        try:
            for _, burst in groupby(steps, lambda step: step.user):
                self._do(list(burst), judge, done)
            self._compare_everything(tops, judge, done)
        finally:
            self._leave(tops)

    def _judge(self) -> Judge:
        native, tree = (
            [performer.pid for performer in side.performers] for side in (self._native, self._tree)
        )
        return Judge(self._level, (native, tree))

    def _enter(self) -> tuple[bytes, bytes]:
        """Send all users to a new directory on their side, where everybody may do everything."""
        self._grounds += 1
        tops = []
        for side, directory in zip((self._native, self._tree), self._directories, strict=True):
            top = directory / f"ground{self._grounds}"
            top.mkdir()
            for _ in range(_DEEP):
                top /= "up"
                top.mkdir()
            top.chmod(0o777)
            os.chown(top, USERS[OWNER].uid, USERS[OWNER].gid)
            side.all("enter", os.fsencode(top))
            tops.append(os.fsencode(top))
        return tops[0], tops[1]

    def _leave(self, tops: tuple[bytes, bytes]) -> None:
        """Take all users away, and the place where they were."""
        ground = f"ground{self._grounds}"
        for side, top in zip((self._native, self._tree), tops, strict=True):
            side.all("leave")
            side.performers[ROOT].order("unflag", top)
            side.performers[ROOT].reply()
        shutil.rmtree(self._directories[0] / ground)
        (self._directories[1] / ground).rmdir()

    def _do(self, burst: list[Step], judge: Judge, done: list[Step]) -> list[Outcome]:
        """Do steps of one user, who does them on both sides at the same time."""
        self._native.order(burst)
        self._tree.order(burst)
        native, tree = self._native.outcomes(burst), self._tree.outcomes(burst)
        for step, one, other in zip(burst, native, tree, strict=True):
            done.append(step)
            what = judge.step(step, one, other)
            if what is not None:
                raise DifferenceError(what, done, one, other)
        return native

    def _compare_everything(
        self, tops: tuple[bytes, bytes], judge: Judge, done: list[Step]
    ) -> None:
        sides = []
        for side, top in zip((self._native, self._tree), tops, strict=True):
            side.performers[ROOT].order("everything", top)
            sides.append(side.performers[ROOT].reply())
        what = judge.everything(*sides)
        if what is not None:
            raise DifferenceError(f"at the end {what}", done, None, None)
