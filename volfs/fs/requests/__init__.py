"""Requests: what each request of the kernel means, whoever brings it.

One method for each request: it finds the inodes, decides on which thread the work is done, and has
root, files or locks do it. ``names``, ``attributes``, ``files`` and ``directories`` say what they
are about; ``later`` is a result that has to be waited for, ``threads`` where it is made,
``failures`` what the caller is told. Start at ``names``.
"""

from volfs.fs.requests.failures import errno_of
from volfs.fs.requests.later import Later, interrupted
from volfs.fs.requests.requests import Requests
from volfs.fs.requests.threads import WAITING, WorkerThreads

__all__ = ["WAITING", "Later", "Requests", "WorkerThreads", "errno_of", "interrupted"]
