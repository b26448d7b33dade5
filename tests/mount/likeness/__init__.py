"""The same random system calls natively and in a tree.

``comparison`` has two ``performers`` for each user (``calls``) do what ``generator`` makes up, and
asks ``judging`` whether it came to the same. Sequences that did not are written down (``records``)
and shortened (``shortening``).

A performer does calls by ``executor``, which has them from ``names``, ``attributes``, ``data`` and
``locking``, on open files in ``slots``; ``looks`` sees how files are then.

The generator has calls from ``name_calls``, ``attribute_calls``, ``data_calls`` and ``lock_calls``,
with values from ``choosing``, and knows by ``world`` what is there, so that most of them can
succeed. ``rules`` says which are not made, since they would show a known difference.
"""
