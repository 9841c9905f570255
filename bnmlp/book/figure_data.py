"""The numbers that a figure draws, as CSV: one row for each point, bar, interval or cell."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import AxLine, Line2D
from matplotlib.ticker import FixedLocator

COLUMNS = ("panel", "series", "x", "y", "low", "high", "value")
Numbers = dict[str, float]


def figure_csv(figure: Figure) -> str:
    """The data of a figure, panel by panel.

    ``x`` and ``y`` are places on the axes, ``low`` and ``high`` ends of an interval or edges of a
    band along the vertical axis, ``value`` the number that a colour stands for. Text, shaded
    regions and straight lines through two points are left out.

    Args:
        figure: Drawn already, or not.

    Returns:
        Text with lines that begin with ``#`` and say what the axes are, then the table; empty
        where nothing is drawn.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    heads, rows = "", []
    for number, ax in enumerate(figure.axes, 1):
        found = [] if ax.get_label() == "<colorbar>" else list(_rows(ax))
        heads += f"# {_head(ax, number)}\n" if found else ""
        rows += [{"panel": number, "series": name, **_short(row)} for name, row in found]
    table.writeheader()
    table.writerows(rows)
    return heads + text.getvalue() if rows else ""


def _head(ax: Axes, number: int) -> str:
    title = f", {ax.get_title()}" if ax.get_title() else ""
    axes = f"x: {_named(ax.xaxis) or 'no name'}; y: {_named(ax.yaxis) or 'no name'}"
    return " ".join(f"panel {number}{title}; {axes}".split())


def _named(axis: Axis) -> str:
    """What an axis is, and what its numbers stand for where its ticks are words."""
    texts = []
    if isinstance(axis.get_major_locator(), FixedLocator):
        places = [f"{place:g}" for place in axis.get_ticklocs()]
        texts = [tick.get_text() for tick in axis.get_ticklabels()]
    words = any(text[:1].isalpha() for text in texts)
    legend = ", ".join(f"{p} = {t}" for p, t in zip(places, texts, strict=True)) if words else ""
    return " ".join(filter(None, (axis.get_label_text(), f"({legend})" if legend else "")))


def _short(row: Numbers) -> dict[str, str]:
    """Six digits; nothing for what is no number."""
    return {key: f"{value:.6g}" if np.isfinite(value) else "" for key, value in row.items()}


def _rows(ax: Axes) -> Iterator[tuple[str, Numbers]]:
    """What is drawn in a panel: first what Matplotlib keeps together, then the rest."""
    drawn = {id(line) for line in ax.lines if isinstance(line, AxLine)}
    for container in ax.containers:
        drawn |= {id(artist) for artist in container.get_children()}
        if isinstance(container, ErrorbarContainer):
            yield from _error_bars(container)
        elif isinstance(container, BarContainer):
            name = _name(container.get_label()) or _name(container.patches[0].get_label())
            for bar in container.patches:
                yield name, {"x": bar.get_x() + bar.get_width() / 2, "y": bar.get_height()}
    for artist in (*ax.lines, *ax.collections):
        if id(artist) not in drawn:
            rows = next((f for kind, f in ARTISTS.items() if isinstance(artist, kind)), None)
            for row in rows(ax, artist) if rows else ():
                yield _name(artist.get_label()), row


def _name(label: object) -> str:
    """A label, that of what no legend shows included; a number for what has none."""
    name = " ".join(str(label).lstrip("_").split())
    if name.startswith("child"):
        return f"unnamed {int(name.removeprefix('child')) + 1}"
    return "" if name.startswith(("container", "nolegend")) else name


def _error_bars(container: Any) -> Iterator[tuple[str, Numbers]]:
    """Points with their intervals; of horizontal intervals only the points are given."""
    line, _, intervals = container.lines
    points = line.get_xydata() if line else np.empty((0, 2))
    upright = intervals[-1].get_paths() if container.has_yerr else [None] * len(points)
    for (x, y), bar in zip(points, upright, strict=True):
        ends = _ends(bar.vertices[:, 1]) if bar else {}
        yield _name(container.get_label()), {"x": x, "y": y, **ends}


def _ends(heights: Any) -> Numbers:
    return {"low": heights.min(), "high": heights.max()}


def _line(ax: Axes, line: Any) -> Iterator[Numbers]:
    """Its points; of a line through the whole panel, its place."""
    in_x, in_y = line.get_transform().contains_branch_seperately(ax.transData)
    for x, y in line.get_xydata() if in_x and in_y else line.get_xydata()[:1]:
        yield {"x": x if in_x else np.nan, "y": y if in_y else np.nan}


def _scatter(ax: Axes, points: Any) -> Iterator[Numbers]:
    yield from ({"x": x, "y": y} for x, y in points.get_offsets())


def _bars(ax: Axes, lines: Any) -> Iterator[Numbers]:
    for path in lines.get_paths():
        yield {"x": path.vertices[0, 0], **_ends(path.vertices[:, 1])}


def _band(ax: Axes, band: Any) -> Iterator[Numbers]:
    for outline in (path.vertices for path in band.get_paths()):
        for x in np.unique(outline[:, 0]):
            yield {"x": x, **_ends(outline[outline[:, 0] == x, 1])}


def _cells(ax: Axes, mesh: Any) -> Iterator[Numbers]:
    corners = mesh.get_coordinates()
    centres = ((corners[:-1, :-1] + corners[1:, 1:]) / 2).reshape(-1, 2)
    for (x, y), value in zip(centres, np.ma.filled(mesh.get_array(), np.nan).flat, strict=True):
        yield {"x": x, "y": y, "value": value}


ARTISTS = {
    Line2D: _line, PathCollection: _scatter, LineCollection: _bars, PolyCollection: _band,
    QuadMesh: _cells,
}  # fmt: skip
