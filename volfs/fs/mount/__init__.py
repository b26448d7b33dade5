"""The mount: everything that makes a tree of the other rooms, and takes it away again.

``checks`` (can it be mounted here), ``mounting`` (mount(2)), ``assembly`` (all parts put together),
``level`` (who brings the requests, and how much the kernel does itself), ``serving``; ``options``
and ``companion`` are what callers say. Calls all rooms of fs. Start at ``serving``.

To import ``serving`` is to import pyfuse3 and trio, so nothing is handed out here.
"""
