"""DriverRegistry: drivers by name."""

from __future__ import annotations

from volfs.errors import UnknownDriverError
from volfs.volume import Driver


class DriverRegistry:
    """Drivers by name."""

    def __init__(self) -> None:
        self._drivers: dict[str, Driver] = {}

    def register(self, driver: Driver) -> None:
        """Add a driver. Raises ValueError when its name is taken."""
        if driver.name in self._drivers:
            raise ValueError(f"a driver {driver.name!r} is registered already")
        self._drivers[driver.name] = driver

    def get(self, name: str) -> Driver:
        """Return the driver of that name. Raises UnknownDriverError, listing the known ones."""
        try:
            return self._drivers[name]
        except KeyError:
            known = ", ".join(self._drivers) or "none"
            raise UnknownDriverError(f"unknown driver {name!r}; the drivers are {known}") from None

    def names(self) -> list[str]:
        """Return the names in the order of registration."""
        return list(self._drivers)
