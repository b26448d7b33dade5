"""``python -m volfs`` is the program ``volfs``."""

from volfs.cli import main

main()
