"""Threads that do something while a test does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.daemons import DEADLINE


@contextmanager
def again_and_again(call: Callable[[int], object], *, pause: float = 0) -> Iterator[None]:
    """Call it in a thread of its own, with 0, 1, 2 and so on, until the context is left.

    ``pause`` is how many seconds are between. What it raises is raised at the end.
    """
    ending = threading.Event()
    problems: list[BaseException] = []

    def run() -> None:
        number = 0
        try:
            while not ending.wait(pause):
                call(number)
                number += 1
        except BaseException as problem:  # noqa: BLE001 - raised by the other thread
            problems.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(DEADLINE)
    if problems:
        raise problems[0]
