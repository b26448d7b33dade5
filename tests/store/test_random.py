"""Random operations, done on a scope and on a dictionary alike, must agree."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.local.conftest import MEMORY
from tests.local.scopes import age, contents, hidden_entries, make, removed_contents, write
from volfs.errors import VolumeExistsError, VolumeInUseError, VolumeNotFoundError
from volfs.local import LocalDriver
from volfs.store import VolumeStore

names = st.sampled_from(["a", "b", "c"])


class Scope(RuleBasedStateMachine):
    """``volumes`` maps names to contents, ``removed`` has the removed ones, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(
            tempfile.mkdtemp(prefix="volfs-test-", dir=MEMORY if MEMORY.is_dir() else None)
        )
        self.volumes: dict[str, str] = {}
        self.removed: list[tuple[str, str]] = []
        self.references: dict[str, set[str]] = {}
        self.made = 0
        self.open()

    def open(self) -> None:
        self.driver = LocalDriver(self.directory, keep_free=0)
        self.store = VolumeStore([self.driver])

    def teardown(self) -> None:
        age(self.directory)
        self.store.housekeep(lambda: False)
        assert hidden_entries(self.directory) == []
        self.store.close()
        shutil.rmtree(self.directory)

    @rule(name=names, exclusive=st.booleans())
    def create(self, name: str, exclusive: bool) -> None:
        try:
            volume = make(self.store, name) if exclusive else self.store.create(name)
        except VolumeExistsError:
            assert exclusive
            assert name in self.volumes
            return
        if name not in self.volumes:
            self.made += 1
            write(volume.path, str(self.made))
            self.volumes[name] = str(self.made)
        else:
            assert not exclusive

    @rule(name=names)
    def remove(self, name: str) -> None:
        in_use = bool(self.references.get(name))
        try:
            self.store.remove(name)
        except VolumeNotFoundError:
            assert name not in self.volumes
        except VolumeInUseError:
            assert in_use
        else:
            assert not in_use
            self.removed.append((name, self.volumes.pop(name)))

    @rule(name=names, new_name=names)
    def rename(self, name: str, new_name: str) -> None:
        in_use = bool(self.references.get(name))
        try:
            self.store.rename(name, new_name)
        except VolumeNotFoundError:
            assert name not in self.volumes
        except VolumeExistsError:
            assert name in self.volumes
            assert new_name in self.volumes
        except VolumeInUseError:
            assert in_use
        else:
            assert not in_use
            assert new_name == name or new_name not in self.volumes
            self.volumes[new_name] = self.volumes.pop(name)

    @rule(first=names, second=names)
    def exchange(self, first: str, second: str) -> None:
        in_use = bool(self.references.get(first) or self.references.get(second))
        try:
            self.store.exchange(first, second)
        except VolumeNotFoundError:
            assert not {first, second} <= set(self.volumes)
        except VolumeInUseError:
            assert in_use
        else:
            assert not in_use
            volumes = self.volumes
            volumes[first], volumes[second] = volumes[second], volumes[first]

    @rule(name=names, new_name=st.none() | names)
    def restore(self, name: str, new_name: str | None) -> None:
        target = new_name or name
        candidates = [entry for entry in self.removed if entry[0] == name]
        try:
            self.driver.restore(name, new_name)
        except VolumeNotFoundError:
            assert not candidates
        except VolumeExistsError:
            assert candidates
            assert target in self.volumes
        else:
            assert target not in self.volumes
            self.volumes[target] = candidates[-1][1]
            self.removed.remove(candidates[-1])

    @precondition(lambda self: self.removed)
    @rule(data=st.data())
    def purge(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.removed) - 1))
        entry = self.driver.trash.list()[::-1][index]
        assert self.driver.trash.purge([entry.id]) == [entry]
        del self.removed[index]

    @rule(name=names, reference=st.sampled_from(["r", "s"]))
    def acquire(self, name: str, reference: str) -> None:
        try:
            self.store.acquire(name, reference)
        except VolumeNotFoundError:
            assert name not in self.volumes
        else:
            self.references.setdefault(name, set()).add(reference)

    @rule(name=names, reference=st.sampled_from(["r", "s"]))
    def release(self, name: str, reference: str) -> None:
        self.store.release(name, reference)
        self.references.get(name, set()).discard(reference)

    @rule()
    def start_again(self) -> None:
        self.store.close()
        self.references.clear()
        self.open()

    @invariant()
    def agrees(self) -> None:
        assert self.store.names() == sorted(self.volumes)
        assert contents(self.driver) == self.volumes
        assert removed_contents(self.driver) == self.removed[::-1]
        for name in ("a", "b", "c"):
            assert self.store.references(name) == self.references.get(name, set())


TestScope = Scope.TestCase
TestScope.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
