"""The plug is pulled: what was acknowledged is there afterwards, and nothing is by halves.

The disk is an image of which a reflinked copy is made amid the work: the copy is what the disk
was at one instant, for the kernel lets nobody write a file while it is cloned. Mounted, it shows
what a machine would find after the power came back.
"""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.children import needs_root
from tests.conftest import mounting, wait_for
from tests.filesystems import ext4, unmounting, xfs
from tests.threads import again_and_again
from volfs.copies.file import FICLONE
from volfs.local import LocalDriver
from volfs.store import References, VolumeStore
from volfs.volume import NewVolume

CUTS = 8
BETWEEN = 0.5
"""Seconds of work, at most, before the next cut."""


@dataclass(frozen=True)
class Seen:
    """One volume: what is written in it, its labels, who refers to it."""

    text: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    references: frozenset[str] = frozenset()


State = dict[str, Seen | int]
"""By name what is seen of volumes; by ``-NAME`` how many removed ones have that name."""


@dataclass
class Worker:
    """Does one thing after the other with volumes of its own.

    ``states[n]`` is what is to be seen after n things were done, of which ``acknowledged`` are.
    """

    prefix: str
    states: list[State] = field(default_factory=lambda: [{}])
    acknowledged: int = 0

    def does(self, call: Callable[[], object], **changes: Seen | int | None) -> None:
        after = {**self.states[-1], **changes}
        self.states.append({name: seen for name, seen in after.items() if seen})
        call()
        self.acknowledged += 1


def write(directory: str | Path, text: str) -> None:
    fd = os.open(Path(directory, "file"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, text.encode())
    os.fsync(fd)
    os.close(fd)
    top = os.open(directory, os.O_RDONLY)
    os.fsync(top)
    os.close(top)


def through_the_store(store: VolumeStore, work: Worker, number: int) -> None:
    vol, copy, new = (f"s{kind}{number}" for kind in ("vol", "copy", "new"))
    labels = (("a", "b"),)
    refs = frozenset(("r",))
    work.does(lambda: store.create(NewVolume(vol, labels={"a": "b"})), **{vol: Seen("", labels)})
    path = store.get(vol).path
    # Not by halves: the name of the file may be there before what is in it.
    (Path(path) / "file").touch()
    work.does(lambda: write(path, "x"), **{vol: Seen("x", labels)})
    work.does(lambda: store.set_labels(vol, {"c": "d"}), **{vol: Seen("x", (("c", "d"),))})
    labels = (("c", "d"),)
    work.does(lambda: store.clone(vol, copy), **{copy: Seen("x", labels)})
    work.does(lambda: store.acquire(copy, "r"), **{copy: Seen("x", labels, refs)})
    work.does(lambda: store.release(copy, "r"), **{copy: Seen("x", labels)})
    work.does(lambda: store.rename(copy, new), **{copy: None, new: Seen("x", labels)})
    work.does(lambda: store.exchange(vol, new), **{vol: Seen("x", labels)})
    work.does(lambda: store.remove(vol), **{vol: None, f"-{vol}": 1})
    work.does(lambda: store.restore(vol), **{vol: Seen("x", labels), f"-{vol}": None})
    for name in (vol, new):
        work.does(partial(store.remove, name), **{name: None, f"-{name}": 1})
        (id,) = (entry.id for entry in store.removed() if entry.name == name)
        work.does(partial(store.purge, [id]), **{f"-{name}": None})


def through_the_tree(mnt: Path, work: Worker, number: int) -> None:
    vol, new = mnt / f"tvol{number}", mnt / f"tnew{number}"
    labels = (("a", "b"),)
    work.does(vol.mkdir, **{vol.name: Seen()})
    work.does(lambda: os.setxattr(vol, "volfs.label.a", b"b"), **{vol.name: Seen("", labels)})
    (vol / "file").touch()
    work.does(lambda: write(vol, "x"), **{vol.name: Seen("x", labels)})
    work.does(lambda: vol.rename(new), **{vol.name: None, new.name: Seen("x", labels)})
    work.does(new.rmdir, **{new.name: None, f"-{new.name}": 1})


def observed(scope: Path, prefix: str) -> State:
    """What is to be seen of a worker's volumes."""
    driver = LocalDriver(scope)
    references = References(str(scope))
    found: State = {}
    for volume in driver.list():
        if volume.name.startswith(prefix):
            file = Path(volume.path, "file")
            found[volume.name] = Seen(
                file.read_text() if file.exists() else "",
                tuple(sorted(volume.labels.items())),
                frozenset(reference.id for reference in references.of(volume.name)),
            )
    for entry in driver.removed():
        if entry.name.startswith(prefix):
            found[f"-{entry.name}"] = 1
    references.close()
    driver.close()
    return found


def clone(image: Path, to: Path) -> None:
    with image.open("rb") as source, to.open("wb") as target:
        fcntl.ioctl(target, FICLONE, source.fileno())


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True, capture_output=True)
    with unmounting(place):
        yield place


def has_done(workers: list[Worker], count: int) -> bool:
    return all(worker.acknowledged >= count for worker in workers)


@pytest.mark.any_level
@needs_root
def test_what_was_acknowledged_is_there_after_a_power_cut(workspace: Path) -> None:
    chance = random.Random(1)
    with ExitStack() as stack:
        disks = stack.enter_context(xfs(workspace / "disks"))
        place = stack.enter_context(ext4(disks / "disk", size=96 << 20))
        scope = place / "scope"
        scope.mkdir()
        tree = stack.enter_context(mounting(workspace))(scope=scope)
        store = VolumeStore([LocalDriver(scope)], references=References(str(scope)))
        stack.callback(store.close)
        workers = [Worker("s"), Worker("t")]
        cuts: list[tuple[Path, list[tuple[int, int]]]] = []
        with (
            again_and_again(lambda number: through_the_store(store, workers[0], number)),
            again_and_again(lambda number: through_the_tree(tree.mnt, workers[1], number)),
        ):
            for number in range(CUTS):
                wait_for(partial(has_done, workers, 3 * number), "some work")
                time.sleep(chance.random() * BETWEEN)  # an instant that nobody has chosen
                image = disks / f"cut{number}"
                acknowledged = [worker.acknowledged for worker in workers]
                clone(disks / "disk.image", image)
                begun = [len(worker.states) for worker in workers]
                cuts.append((image, list(zip(acknowledged, begun, strict=True))))
        assert all(worker.acknowledged > CUTS for worker in workers)
        for image, spans in cuts:
            with mounted(image, workspace / "after") as after:
                for worker, (first, end) in zip(workers, spans, strict=True):
                    possible = worker.states[first:end]
                    found = observed(after / "scope", worker.prefix)
                    assert found in possible, f"{image.name}: {found}, not one of {possible}"
            image.unlink()
