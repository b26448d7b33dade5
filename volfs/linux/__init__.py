"""Linux, as Python does not offer it: the ground floor, which imports no other room.

Nothing here knows of volumes. The modules are independent tools, so each is imported by itself:

- ``syscalls``   what ``os`` lacks, by ctypes; ``calls``, what a request needs often, in C if built
- ``identity``   the privileges of the daemon, and how it acts as somebody else
- ``durable``    directories by descriptor, small files that are on disk when a call returns
- ``walking``    walking through a tree that others change
- ``deletion``   deleting a tree whatever is in it
- ``mountinfo``  the mount table of a process
"""
