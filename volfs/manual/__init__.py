"""The manual: one Markdown file for each page, named as man pages are, ``NAME.SECTION.md``.

Nothing here is run. ``volfs help`` shows the pages (volfs.cli.manual), ``scripts/manpages`` makes
man pages of them, and the tests run what they show and compare their lists with the program.

Their Markdown is what both of these understand: a first heading ``# NAME(SECTION)``, sections in
capitals, definition lists for options, tables without a ``|`` in a cell. The dashes below a table's
header say how wide its columns are in the man page.
"""
