"""volfs: a mounted directory in which mkdir makes a volume and rmdir removes it."""

__version__ = "0.1.0"
