"""What is agreed with the kernel about one mount: Agreement, and the Connection that has it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the INIT reply settles, once for a mount.

    ``device``: the descriptor of the FUSE device on which requests are answered; -1 where pyfuse3
    brings them. ``lists_by_inode``: directories are listed without having been opened.
    ``maps_direct``: a file opened to bypass the page cache can be mapped. ``passthrough``: the
    kernel can read and write backing files itself; ``why_not`` says why it cannot.
    """

    device: int = -1
    lists_by_inode: bool = False
    maps_direct: bool = False
    passthrough: bool = False
    why_not: str = ""

    @property
    def tapped(self) -> bool:
        """Whether requests are answered where they are read, and not brought by pyfuse3."""
        return self.device >= 0


PLAIN = Agreement()
"""What holds for a mount for which nothing was negotiated."""


class Connection:
    """One connection to the kernel. Its agreement is PLAIN until INIT is answered in the tap."""

    __slots__ = ("agreement",)

    def __init__(self) -> None:
        self.agreement = PLAIN

    def close(self) -> None:
        """Note that the FUSE device is not to be used any more."""
        self.agreement = PLAIN
