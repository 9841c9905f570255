"""When the text of a page was last changed, from the history of its source."""

import os
import subprocess
from datetime import date
from functools import cache
from pathlib import Path

from sphinx.application import Sphinx


def begin(app: Sphinx, env) -> None:
    """Ask once, before several processes write pages."""
    dates(Path(app.srcdir))


def say(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """Let the theme write the date below the page; there is none without a history."""
    if pagename in app.env.all_docs:
        root = Path(app.srcdir)
        source = Path(app.env.doc2path(pagename)).relative_to(root).as_posix()
        if day := dates(root).get(source):
            context["last_updated"] = f"{day.day} {day:%B %Y}"


@cache
def dates(root: Path) -> dict[str, date]:
    """The day of the last commit that changed each file.

    A repository around ``root`` is not asked, nor one whose history is cut off.

    Args:
        root: The clone.

    Returns:
        Days by paths in the clone.
    """
    inside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.resolve().parent)}
    git = ["git", "-C", str(root), "-c", "core.quotePath=false"]

    def ask(*command: str) -> list[str]:
        done = subprocess.run([*git, *command], capture_output=True, env=inside, check=True)
        return done.stdout.decode().splitlines()

    found: dict[str, date] = {}
    try:
        if ask("rev-parse", "--is-shallow-repository") == ["true"]:
            return found
        for line in ask("log", "--format=%x00%cs", "--name-only", "--", "book"):
            if line.startswith("\0"):
                day = date.fromisoformat(line[1:])
            elif line:
                found.setdefault(line, day)  # the newest commit comes first
    except (OSError, subprocess.CalledProcessError):
        pass
    return found
