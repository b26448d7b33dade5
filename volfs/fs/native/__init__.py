"""What is asked of the backing filesystem for most requests, in C where that is built.

``Status`` is what stat(2) tells; the C side also packs it, and listings, into the records of the
wire without a Python object for each field. Calls nothing above linux. Start at ``status``.
"""

from volfs.fs.native.status import MadeStatus, Status, fstat, fstatat, open_path

__all__ = ["MadeStatus", "Status", "fstat", "fstatat", "open_path"]
