"""The wire: requests answered where they are read, without libfuse and pyfuse3 between.

    /dev/fuse
      ↕   _hooks.c     reads requests and writes replies in libfuse's place; passes on what
                       libfuse answers (INIT, DESTROY) and sees the reply
      ↕   _tap.c       calls a Python function for each opcode; goes from one request to the next
                       as long as there is one (_redirect.c puts all of it in place when pyfuse3
                       mounts)
      ↕   wire         gives each request to its method, and answers slow ones when they are done
      ↕   names, attributes, files, directories, locks
                       unpack the bytes of a request (protocol), ask requests, pack the answer
                       (entries)

``negotiation`` settles with the kernel what a mount can do, ``session`` puts a tap into the session
that is mounted next. Calls requests. Start at ``session``, which needs the C extensions to import;
so nothing is handed out here.
"""
