"""The same names as in tests.children, for modules that import them from here."""

from tests.children import OTHER, USER, Child, run_as

__all__ = ["OTHER", "USER", "Child", "run_as"]
