"""The command doctor: what this machine offers, and what to do about what it lacks."""

from __future__ import annotations

from dataclasses import asdict

import click

from volfs.cli.output import json_option, print_json, printable
from volfs.cli.scope import scope_option

_MARKS = {"ok": ("ok", "green"), "limited": ("--", "yellow"), "missing": ("!!", "red")}


@click.command()
@scope_option
@json_option
def doctor(scope: str, as_json: bool) -> int:
    """Show what this machine offers and lacks.

    \b
      volfs doctor
      volfs doctor --scope /srv/volumes --json

    Each line is ok, -- (works, but something is limited) or !! (keeps volfs from mounting),
    and below the last two stands the command that fixes it, for Debian. Nothing is changed;
    mounting is tried on an empty directory in /tmp.

    The exit code is 0 when mounting works and 1 when not.
    """
    from volfs.cli.machine import examine

    findings = []
    for finding in examine(scope):
        findings.append(finding)
        if not as_json:
            mark, colour = _MARKS[finding.status]
            line = f"{finding.name:<13}{printable(finding.detail)}"
            click.echo(f"{click.style(mark, fg=colour)} {line}")
            if finding.fix:
                click.echo(f"   fix: {printable(finding.fix)}")
    works = all(finding.status != "missing" for finding in findings)
    if as_json:
        print_json({"works": works, "findings": [asdict(finding) for finding in findings]})
    else:
        click.echo("mounting works here" if works else "mounting does not work here yet")
    return 0 if works else 1
