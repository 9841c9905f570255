"""How the book's figures look: one style, one colour for each thing on every page."""

import base64
import io
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.rcsetup import cycler
from torch import Tensor

from bnmlp.book.figure_data import figure_csv
from bnmlp.book.intervals import median_interval

# Readable on white and on dark pages alike.
NEUTRAL = "#767676"
BLUE, ORANGE, GREEN, PINK = "#0b84c6", "#d55e00", "#009e73", "#b867a0"
COLOURS = {
    "orthogonal": BLUE,
    "gaussian": ORANGE,
    "identity": BLUE,
    "tanh": GREEN,
    "sin": PINK,
    "theory": NEUTRAL,
}
DATA, PICTURE = "bnmlp-data", "bnmlp-picture"  # in the metadata of an image
DIGITS = 3  # of a number shown as the value of a cell
THIN = 0.45  # opacity of the networks behind their median; less is below the contrast of graphics
POINTS = 700  # of a bundle of lines; each point costs ten bytes of a page


def use_book_style() -> None:
    """Draw transparent SVG figures whose text and lines read on light and dark pages.

    Numbers that a notebook shows as the value of a cell get ``DIGITS`` digits, and each
    figure brings its data.
    """
    from IPython.core.getipython import get_ipython
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("svg", metadata={"Date": None})
    if (shell := get_ipython()) is not None:
        show_few_digits(shell)
        bring_data(shell.display_formatter)
    mpl.rcParams.update(
        {
            "figure.figsize": (6, 3.6),
            "figure.facecolor": "none",
            "figure.constrained_layout.use": True,
            "savefig.transparent": True,
            "axes.facecolor": "none",
            "axes.edgecolor": NEUTRAL,
            "axes.labelcolor": NEUTRAL,
            "axes.titlecolor": NEUTRAL,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(
                color=[BLUE, ORANGE, GREEN, PINK], linestyle=["-", "--", "-.", ":"]
            ),
            "font.size": 11,
            "legend.fontsize": 11,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "svg.hashsalt": "bnmlp",
            "text.color": NEUTRAL,
            "xtick.color": NEUTRAL,
            "ytick.color": NEUTRAL,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
        }
    )


def show_few_digits(shell: Any) -> None:
    """Let a notebook show numbers, also those in lists and dictionaries, with ``DIGITS`` digits.

    Only as the value of a cell: what it glues is rounded once, where the text shows it.

    Args:
        shell: IPython's ``InteractiveShell``.
    """
    plain, hook = shell.display_formatter.formatters["text/plain"], shell.displayhook
    whole = hook.compute_format_data

    def rounded(value: Any) -> Any:
        plain.float_precision = f"%.{DIGITS}g"
        try:
            return whole(value)
        finally:
            plain.float_precision = "%.15g"

    plain.float_precision = "%.15g"
    hook.compute_format_data = rounded


def bring_data(formatter: Any) -> None:
    """Let a notebook keep what its figures draw, in the metadata of their images.

    That is their data as CSV under ``DATA`` and, of the first one, a picture on white as PNG in
    base 64 under ``PICTURE``, for previews that show no SVG.

    Args:
        formatter: IPython's ``DisplayFormatter``, which draws figures as SVG already.
    """
    images = formatter.formatters["image/svg+xml"]
    draw = images.lookup_by_type(Figure)
    pictures = iter([picture])

    def draw_with_data(figure: Figure) -> tuple[str, dict[str, str]]:
        image, show = draw(figure), next(pictures, None)  # first: another drawing may move the axes
        told = {DATA: figure_csv(figure)} | ({PICTURE: show(figure)} if show else {})
        return image, told

    images.for_type(Figure, draw_with_data)


def picture(figure: Figure) -> str:
    """A figure on white, 1200 points wide, as PNG in base 64."""
    image = io.BytesIO()
    dots = 1200 / figure.get_figwidth()
    figure.savefig(image, format="png", dpi=dots, facecolor="white", transparent=False)
    return base64.b64encode(image.getvalue()).decode()


def curve(
    ax: Axes, x: np.ndarray | Tensor, runs: np.ndarray | Tensor, label: str, **style: Any
) -> Line2D:
    """Median over networks, with every network drawn faintly behind it at the same points.

    Args:
        ax: Where to draw.
        x: Abscissa. Shape ``(points,)``. Of many points some are left out, evenly, of all lines
            alike, for a line drawn at fewer looks smoother.
        runs: One column per network. Shape ``(points, R)``.
        label: Name in the legend.
        **style: Passed to ``plot``.

    Returns:
        The line of the medians.
    """
    x, runs = np.asarray(x), np.asarray(runs)
    most = max(POINTS // (runs.shape[1] + 1), 40)
    kept = np.unique(np.linspace(0, len(x) - 1, most).round().astype(int))
    (line,) = ax.plot(x[kept], np.median(runs[kept], 1), label=label, **style)
    names = [f"_{label}, network {number}" for number in range(1, runs.shape[1] + 1)]
    ax.plot(
        x[kept], runs[kept], color=line.get_color(), alpha=THIN, linewidth=0.7, linestyle="-",
        label=names,  # underscored: not in the legend
    )  # fmt: skip
    return line


def median_bars(ax: Axes, x: np.ndarray | Tensor, runs: np.ndarray | Tensor, **style: Any) -> None:
    """Draw medians over networks with their 95 % intervals.

    Args:
        ax: Where to draw.
        x: Abscissa. Shape ``(points,)``.
        runs: One column per network. Shape ``(points, R)``.
        **style: Passed to ``errorbar``.
    """
    middle, low, high = median_interval(runs)
    ax.errorbar(x, middle, (middle - low, high - middle), capsize=2, **style)


def new_figure(columns: int = 1, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of the book's width with ``columns`` panels side by side.

    Args:
        columns: Number of panels side by side.
        rows: Number of such rows.
        **options: Passed to ``matplotlib.pyplot.subplots``.

    Returns:
        Figure and axes, one or an array of them, as ``matplotlib.pyplot.subplots``.
    """
    return plt.subplots(rows, columns, **options)
