"""The store as a mounted tree: mkdir makes a volume, rmdir removes it."""
