"""The tests: a directory for each room of volfs, in layers from the inside out.

Without a mount, each room asked through what it offers the next:

- ``words``, ``linux``, ``copies``, ``local``, ``store``: as ``volfs/volume.py`` and the rest of the
  package's top, ``volfs/linux``, ``volfs/copies`` and so on. What is true of every driver is in
  ``words``; references and what removes them in ``store``.
- ``fs``: the parts of the tree, put together on a scope and asked as the kernel would ask them:
  ``native``, ``inodes``, ``files``, ``locks``, ``requests``, ``wire``, ``plain``.

On real mounts:

- ``mount``: the whole tree, mostly compared with a plain directory beside it. Run at each level
  at which a tree can be served (see ``levels``).
- ``docker``: the plugin's answers. ``cli``: the commands, a file for each.
- ``clients``: other people's programs on the tree: git, SQLite, PostgreSQL, Docker, Podman,
  desktops, stressors.

Beside the directories lies what several of them share: ``conftest`` (mounts), ``interpreter``
(from which volfs is forked), ``forking``, ``daemons``, ``children`` (processes and users),
``threads``, ``unprivileged``, ``filesystems``, ``acls``, ``documents``.
"""
