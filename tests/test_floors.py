"""The house: rooms call only rooms on the floors below, and nothing goes round in a circle.

Read from the imports of all modules, those inside functions and under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "volfs"

FLOORS: list[set[str]] = [
    {"volfs.linux"},
    {"volfs.holder", "volfs.errors", "volfs.volume"},
    {"volfs.copies"},
    {"volfs.local"},
    {"volfs.store"},
    {"volfs"},  # the public interface
    {"volfs.fs", "volfs.fs.agreement"},
    {"volfs.fs.native"},
    {"volfs.fs.inodes"},
    {"volfs.fs.files", "volfs.fs.locks"},
    {"volfs.fs.root"},
    {"volfs.fs.requests"},
    {"volfs.fs.wire", "volfs.fs.plain"},
    {"volfs.fs.mount"},
    {"volfs.docker"},
    {"volfs.manual"},
    {"volfs.cli"},
    {"volfs.__main__"},
]
"""From the ground up. The words are three modules; every other room is a package."""

WORDS = FLOORS[1]


def module_of(path: Path) -> str:
    """The name by which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
COMPILED = {module_of(path) for path in PACKAGE.rglob("*.pyi")}


def imports_of(module: str) -> set[str]:
    """The modules of volfs that a module imports, by whatever way and for whatever purpose."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            source = node.module or ""
            below = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES or name in COMPILED else source for name in below]
        else:
            continue
        found |= {name for name in names if name == "volfs" or name.startswith("volfs.")}
    return found


IMPORTS = {module: imports_of(module) for module in MODULES}


def room_of(module: str) -> str:
    """The room that a module is in: the longest of the names on the floors that it begins with."""
    rooms = [room for floor in FLOORS for room in floor if f"{module}.".startswith(f"{room}.")]
    return max(rooms, key=len)


def floor_of(module: str) -> int:
    room = room_of(module)
    return next(height for height, floor in enumerate(FLOORS) if room in floor)


def test_every_module_is_in_a_room() -> None:
    """What lies in volfs or volfs.fs themselves is there on purpose: it is named above."""
    for module in MODULES:
        for hall in ("volfs", "volfs.fs"):
            assert room_of(module) != hall or module == hall, f"{module} lies about in the hall"


@pytest.mark.parametrize("module", MODULES)
def test_arrows_run_down(module: str) -> None:
    for other in IMPORTS[module]:
        assert other in MODULES or other in COMPILED, (
            f"{module} imports {other}, which is not there"
        )
        if room_of(other) != room_of(module) and {room_of(other), room_of(module)} - WORDS:
            assert floor_of(other) < floor_of(module), f"{module} imports {other}"


def test_there_is_no_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


def test_each_room_says_what_it_is() -> None:
    for room in {room_of(module) for module in MODULES}:
        if MODULES[room].name != "__init__.py":
            continue
        text = ast.get_docstring(ast.parse(MODULES[room].read_text()))
        assert text and len(text.splitlines()) >= 3, f"{room} does not say what lives there"


def test_c_is_only_where_it_is_a_system_call_or_the_wire() -> None:
    rooms = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("*.[ch]")}
    assert rooms == {Path("volfs/linux"), Path("volfs/fs/native"), Path("volfs/fs/wire")}
