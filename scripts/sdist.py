"""What a source distribution holds beside the package: setuptools asks here (pyproject.toml).

MANIFEST.in would say the same, but lies at the top level only.
"""

from setuptools.command import sdist


class Sdist(sdist.sdist):
    """The sources of the package, and with them the tests and the scripts."""

    def make_distribution(self) -> None:
        """Add them to what setuptools found by itself."""
        for directory in ("scripts", "tests"):
            self.filelist.graft(directory)
        self.filelist.global_exclude("*.py[cod]")
        super().make_distribution()
