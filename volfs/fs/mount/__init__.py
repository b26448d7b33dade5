"""The mount: everything that makes a tree of the other rooms, and takes it away again.

``checks`` (can it be mounted here), ``mounting`` (mount(2)), ``assembly`` (all parts put together),
``level`` (who brings the requests, and how much the kernel does itself), ``serving``, ``mounted``
(the daemon's own mount, and its end); ``options`` and ``companion`` are what callers say.
``unmounting`` ends a daemon from outside, which ``daemons`` finds. Calls all rooms of fs. Start at
``serving``.

To import ``serving`` is to import pyfuse3 and trio, so nothing is handed out here.
"""
