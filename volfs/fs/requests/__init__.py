"""Requests: what each request of the kernel means, whoever brings it.

One method for each request: it finds the inodes, decides on which thread the work is done, and has
root, files or locks do it. ``names``, ``attributes``, ``files`` and ``directories`` say what they
are about; ``later`` is a result that has to be waited for, ``threads`` where it is made, ``stall``
what a change on the event loop waits for, ``failures`` what the caller is told. Start at ``names``.

Who has checked what: the kernel, with the caller's user, groups and ACLs (default_permissions),
before the request comes, unless it is said here. The head of each module has the rest: what the
daemon has to do as the caller, since nobody has checked it, or since whose it is follows from who
does it. Only requests that make something say who asks for sure; of others the uid can be UNKNOWN
(volfs.linux.identity), and /proc tells where it matters.
"""

from volfs.fs.requests.failures import errno_of
from volfs.fs.requests.later import Later, interrupted
from volfs.fs.requests.requests import Requests
from volfs.fs.requests.stall import Stall
from volfs.fs.requests.threads import WAITING, WorkerThreads

__all__ = ["WAITING", "Later", "Requests", "Stall", "WorkerThreads", "errno_of", "interrupted"]
