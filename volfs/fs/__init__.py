"""The store as a mounted tree: mkdir makes a volume, rmdir removes it.

A request of the kernel comes in at ``wire`` (where there is a tap) or ``plain`` (brought by
pyfuse3), is decided in ``requests``, and done by ``root`` (volumes), ``files`` (what is below them)
or ``locks``, on the ``inodes`` that the kernel knows; ``native`` asks the backing filesystem.
``mount`` puts all of them together. A room calls only those named after it here; ``agreement`` is
for all to read: what the kernel and the daemon have agreed. Calls the store and linux.
"""
