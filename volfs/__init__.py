"""volfs: a mounted directory in which mkdir makes a volume and rmdir removes it.

A program can do with a scope all that the command line and a mounted tree do, beside them:

    >>> import volfs
    >>> with volfs.open_scope("/srv/volumes") as opened:
    ...     store = opened.store
    ...     web = store.create(volfs.NewVolume("web", labels={"team": "blue"}))
    ...     test, report = store.clone("web", "web-test")
    ...     store.remove("web")
    ...     web = store.restore("web")
    ...     print(store.names(), web.labels["team"], report.is_point_in_time)
    ['web', 'web-test'] blue True

``web.path`` is where the data is. VolumeStore says what else can be done, and Driver what a driver
of your own has to promise. Every expected failure is a VolfsError, or the OSError of the
filesystem.

A name is imported when it is first used, so ``import volfs`` alone costs next to nothing.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "ArchiveError",
    "CopyReport",
    "CopyingDriver",
    "Driver",
    "Holder",
    "InvalidLabelError",
    "InvalidNameError",
    "LocalDriver",
    "MountError",
    "NameTooLongError",
    "NewVolume",
    "OpenScope",
    "OptionConflictError",
    "OutsideScopeError",
    "Owner",
    "PluginError",
    "RemovedVolume",
    "RestoringDriver",
    "ScopeError",
    "UnknownDriverError",
    "UnknownOptionError",
    "UnsupportedError",
    "UntrustedLinkError",
    "VolfsError",
    "Volume",
    "VolumeExistsError",
    "VolumeInUseError",
    "VolumeNotEmptyError",
    "VolumeNotFoundError",
    "VolumeStore",
    "open_scope",
]

if TYPE_CHECKING:
    from volfs.errors import (
        ArchiveError,
        InvalidLabelError,
        InvalidNameError,
        MountError,
        NameTooLongError,
        OptionConflictError,
        OutsideScopeError,
        PluginError,
        ScopeError,
        UnknownDriverError,
        UnknownOptionError,
        UnsupportedError,
        UntrustedLinkError,
        VolfsError,
        VolumeExistsError,
        VolumeInUseError,
        VolumeNotEmptyError,
        VolumeNotFoundError,
    )
    from volfs.holder import Holder
    from volfs.local import LocalDriver
    from volfs.store import OpenScope, VolumeStore, open_scope
    from volfs.volume import (
        CopyingDriver,
        CopyReport,
        Driver,
        NewVolume,
        Owner,
        RemovedVolume,
        RestoringDriver,
        Volume,
    )
else:
    # Where a name is looked for: the lightest first.
    _HOMES = ("volfs.errors", "volfs.volume", "volfs.holder", "volfs.local", "volfs.store")

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in __all__:
            for home in _HOMES:
                found = vars(import_module(home)).get(name)
                if found is not None:
                    return globals().setdefault(name, found)
        raise AttributeError(f"module 'volfs' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
