"""What stat(2) tells of an inode, and the records of the wire made of it, in C where built.

``Status`` has the fields of struct stat; ``fstat``, ``fstatat`` and ``open_path`` ask for one, and
``MadeStatus`` is one that no file stands behind. The extension ``_records`` leaves the fields in C
until they are asked for, since an object of each would take longer than the request, and lays
out attributes, entries and listings as the kernel reads them: that part is for the wire alone.
Where it was not built the functions are those of the os module, and mounts are plain.

Calls linux. Start at ``status``.
"""

from volfs.fs.native.status import MadeStatus, Status, birth_ns, fstat, fstatat, open_path

__all__ = ["MadeStatus", "Status", "birth_ns", "fstat", "fstatat", "open_path"]
