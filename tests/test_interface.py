"""What ``import volfs`` hands out, and what it costs."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import volfs
from tests.words.memory import MemoryDriver
from volfs import errors

pytestmark = pytest.mark.any_level


def imported_by(code: str) -> set[str]:
    """The modules that a new interpreter has after this."""
    listing = f"{code}; import sys; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", listing], text=True).split())


def test_the_example_does_what_it_says(tmp_path: Path) -> None:
    assert volfs.__doc__ is not None
    text = volfs.__doc__.replace("/srv/volumes", str(tmp_path / "scope"))
    example = doctest.DocTestParser().get_doctest(text, {}, "volfs", None, 0)
    assert len(example.examples) == 2
    result = doctest.DocTestRunner().run(example)
    assert (result.attempted, result.failed) == (2, 0)


def test_all_that_is_named_is_there() -> None:
    assert set(volfs.__all__) <= set(dir(volfs))
    for name in volfs.__all__:
        assert getattr(volfs, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = volfs.nonsense  # type: ignore[attr-defined]


def test_every_error_is_handed_out() -> None:
    known = {name for name, item in vars(errors).items() if inspect.isclass(item)}
    assert {name for name in known if name.endswith("Error")} <= set(volfs.__all__)


def test_importing_it_imports_next_to_nothing() -> None:
    ours = {name for name in imported_by("import volfs") if name.startswith("volfs")}
    assert ours == {"volfs"}


@pytest.mark.parametrize(
    "code", ["import volfs", "from volfs import *", "import volfs.cli.volumes"]
)
def test_neither_trio_nor_pyfuse3_is_imported(code: str) -> None:
    imported = imported_by(code)
    assert "volfs" in imported
    assert not {"trio", "pyfuse3"} & imported


def test_a_driver_shows_what_it_can_do(tmp_path: Path) -> None:
    memory, local = MemoryDriver(tmp_path), volfs.LocalDriver(tmp_path / "scope")
    for driver, able in ((memory, False), (local, True)):
        assert isinstance(driver, volfs.CopyingDriver) is able
        assert isinstance(driver, volfs.RestoringDriver) is able
    local.close()
