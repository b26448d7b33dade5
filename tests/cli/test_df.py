"""The command df tells the space that volumes take."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.cli.running import Result, volfs


class TestDf:
    def test_counts_blocks_and_hard_links_once(self, web: Path, scope: Path) -> None:
        (web / "big").write_bytes(b"x" * 2**20)
        os.link(web / "big", web / "same")
        (web / "dir").mkdir()
        (web / "link").symlink_to("/usr")
        volfs("create", "gone")
        (scope / "volumes/gone/_data/f").write_bytes(b"x" * 2**16)
        volfs("rm", "gone")
        found = volfs("df", "--json").json
        assert found.keys() == {"scope", "filesystem", "volumes", "removed", "totals"}
        assert found["scope"] == str(scope)
        assert found["filesystem"].keys() == {"size", "used", "available"}
        (volume,) = found["volumes"]
        assert volume["entries"] == 5  # _data, index.html, big, dir, link
        du = subprocess.check_output(["du", "-s", "-B1", web], text=True)
        assert volume["size"] == int(du.split()[0])
        (removed,) = found["removed"]
        assert removed["name"] == "gone"
        assert removed["size"] > 2**16
        assert found["totals"] == {"volumes": volume["size"], "removed": removed["size"]}

    def test_the_largest_first(self, web: Path, scope: Path, tmp_path: Path) -> None:
        volfs("create", "big", "unmounted")
        (scope / "volumes/big/_data/f").write_bytes(b"x" * 2**20)
        (unmounted := scope / "volumes/unmounted/_data").rmdir()
        unmounted.symlink_to(tmp_path / "disk")
        assert [v["name"] for v in volfs("df", "--json").json["volumes"]] == [
            "big",
            "web",
            "unmounted",
        ]
        assert volfs("df", "-q") == Result(0, "big\nweb\nunmounted\n", "")
        lines = volfs("df").out.splitlines()
        assert lines[1].startswith("big\t1.0 MiB\t2\t")
        assert lines[3] == "unmounted\t-\t-\t"

    def test_for_people(self, web: Path) -> None:
        result = volfs("df")
        assert re.search(r"^web\t[\d.]+ KiB\t2\t$", result.out, re.MULTILINE)
        assert re.fullmatch(
            r"volumes [\d.]+ KiB, trash 0 B, free [\d.]+ \w+ of [\d.]+ \w+ in /.*\n", result.err
        )
