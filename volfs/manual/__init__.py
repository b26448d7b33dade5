"""The manual: one Markdown file for each page, named as man pages are, ``NAME.SECTION.md``.

Nothing here is run. ``volfs help`` shows the pages (volfs.cli.manual), ``scripts/manpages`` makes
man pages of them, and the tests run what they show and compare their lists with the program.

Their Markdown is what both readers take: a first heading ``# NAME(SECTION)``, sections in capitals,
definition lists for options, tables without a ``|`` in a cell. How wide a column of a man page's
table is, the dashes below its header say.
"""
