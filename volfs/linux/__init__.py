"""Linux, as Python does not offer it: system calls, identities, durable small files, walks.

The ground floor: nothing here knows of volumes, and nothing in it imports another room. Its
modules are used one by one; ``syscalls`` says what is missed in ``os``, ``calls`` what a request
needs often, ``identity`` how the daemon acts as somebody else.
"""
