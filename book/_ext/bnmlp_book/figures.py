"""Make the published figures lighter by the digits that no screen can show."""

import re
from pathlib import Path

from sphinx.application import Sphinx


def round_coordinates(app: Sphinx, exception: Exception | None) -> None:
    """Keep two decimals of the coordinates in every SVG, about a quarter of its bytes less."""
    for path in (Path(app.outdir) / "_images").glob("*.svg"):
        figure = path.read_text(encoding="utf8")
        rounded = re.sub(r' (?:d|x|y)="[^"]*"', _shorten, figure)
        if rounded != figure:
            path.write_text(rounded, encoding="utf8")


def _shorten(attribute: re.Match) -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0]).replace("\n", "")
