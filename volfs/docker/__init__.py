"""The store as a volume plugin: a face for dockerd and podman.

``server`` serves ``application`` (the protocol over HTTP) on the socket of ``listener``; ``plugin``
is what each request means to the store, ``places`` where a container finds a volume, ``messages``
the words of the protocol. ``clients`` are those connected: ``newcomers`` until they have asked
something, each a ``connection`` from then on. Calls the store and linux, and asks fs what a tree
shows, and how many descriptors are for it. Start at ``plugin``.
"""
