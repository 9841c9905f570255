import base64
import functools
import io
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from IPython.core.pylabtools import print_figure
from matplotlib.figure import Figure

from bnmlp.book.figure_data import figure_csv
from bnmlp.book.intervals import median_interval
from bnmlp.book.plotting import (
    DATA,
    PICTURE,
    bring_data,
    curve,
    median_bars,
    new_figure,
    show_few_digits,
)
from bnmlp_book.figures import lighter
from bnmlp_book.pages import drop_empty_heads, drop_plain_spans

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def figure():
    with plt.rc_context({"svg.hashsalt": "test"}):
        fig, ax = plt.subplots()
        ax.plot([0, 1, 2], [0.123456, 1, 0.5], "o--", label="some text")
        ax.legend()
        buffer = io.StringIO()
        fig.savefig(buffer, format="svg")
        plt.close(fig)
    return buffer.getvalue()


def test_a_lighter_figure_draws_the_same_things(figure):
    small = lighter(figure)
    before, after = ET.fromstring(figure), ET.fromstring(small)
    for tag in ("path", "use", "g"):
        assert len(list(after.iter(SVG + tag))) == len(list(before.iter(SVG + tag)))
    assert len(small) < 0.6 * len(figure)
    text = r"scale\(\S+ -\S+\)"  # the size of each piece of text
    assert re.findall(text, small) == re.findall(text, figure)


def test_a_lighter_figure_keeps_every_style(figure):
    small = lighter(figure)
    styles = set(re.findall(r' style="([^"]*)"', figure))
    sheet = "".join(element.text for element in ET.fromstring(small).iter(SVG + "style"))
    for name in set(re.findall(r'class="(s\d+)"', small)):
        assert re.search(rf"\.{name}{{([^}}]*)}}", sheet)[1] in styles
    assert not re.search(r' style="', small)


def test_coordinates_are_rounded_and_no_line_is_lost(figure):
    paths = re.findall(r' d="([^"]*)"', lighter(figure))
    assert all(not re.search(r"\.\d\d", path) for path in paths)
    assert [path.count("L") for path in paths] == [
        path.count("L") for path in re.findall(r' d="([^"]*)"', figure)
    ]


def test_plain_code_loses_its_spans_and_keeps_its_text():
    body = '<span class="n">x</span> <span class="o">=</span> <span class="mi">1</span>'
    context = {"body": body}
    drop_plain_spans(None, "page", "page.html", context, None)
    assert context["body"] == 'x <span class="o">=</span> <span class="mi">1</span>'


def test_heads_of_tables_without_words_become_cells():
    head = '<tr><th></th><th class="blank" >&nbsp;</th><th>a</th><thead></thead></tr>'
    context = {"body": head}
    drop_empty_heads(None, "page", "page.html", context, None)
    cells = '<tr><td></td><td class="blank" ></td><th>a</th><thead></thead></tr>'
    assert context["body"] == cells


def test_medians_are_drawn_with_the_ends_of_their_intervals():
    _, ax = new_figure()
    median_bars(ax, [1, 2], np.arange(20.0).reshape(2, 10), ls="")
    (bars,) = ax.containers
    assert bars.lines[0].get_ydata().tolist() == [4.5, 14.5]
    ends = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    assert ends == [[1, 8], [11, 18]]


@pytest.mark.parametrize(("points", "networks"), [(8, 10), (1000, 10), (300, 3), (500, 60)])
def test_networks_and_their_median_are_drawn_at_the_same_points(points, networks):
    _, ax = new_figure()
    runs = np.random.default_rng(0).normal(size=(points, networks))
    median = curve(ax, np.arange(points), runs, "all")
    kept = median.get_xdata()
    assert (kept[0], kept[-1]) == (0, points - 1) and len(kept) >= min(points, 40)
    assert median.get_ydata() == pytest.approx(np.median(runs[kept], 1))
    thin = [line for line in ax.lines if line is not median]
    assert len(thin) == networks
    for line, run in zip(thin, runs.T, strict=True):
        assert line.get_xdata().tolist() == kept.tolist()
        assert line.get_ydata().tolist() == run[kept].tolist()
    plt.close("all")


def test_numbers_that_a_page_shows_have_three_digits_and_those_it_glues_have_all():
    formatter = DisplayFormatter()
    hook = SimpleNamespace(compute_format_data=formatter.format)
    value = (
        2.886579864025407e-15,
        {"gap": 0.9242511739588397},
        [float("inf"), np.float64(1 / 3)],
        12345,
    )
    show_few_digits(SimpleNamespace(display_formatter=formatter, displayhook=hook))
    shown, _ = hook.compute_format_data(value)
    assert shown["text/plain"] == "(2.89e-15, {'gap': 0.924}, [inf, 0.333], 12345)"
    glued, _ = formatter.format(np.float64(1.6526825))  # 1.7, but 1.6 by way of 1.65
    assert glued["text/plain"] == "1.6526825"


def test_the_readme_shows_the_stored_training(tmp_path):
    pytest.importorskip("bnmlp_book")
    from bnmlp_book.pictures import STATIC, draw

    draw(tmp_path / "training.svg")
    drawn, shown = (
        [float(n) for n in re.findall(r"[ML] (-?[\d.]+) -?[\d.]+", path.read_text())]
        for path in (tmp_path / "training.svg", STATIC / "training.svg")
    )
    assert len(drawn) == len(shown), "python -m bnmlp_book.pictures draws it anew"
    np.testing.assert_allclose(drawn, shown, atol=0.1)


def data_of(figure):
    """Its data, read as a reader would."""
    return pd.read_csv(io.StringIO(figure_csv(figure)), comment="#")


def test_the_data_of_a_figure_are_the_numbers_that_it_draws():
    rng = np.random.default_rng(0)
    x, runs = np.arange(1.0, 9), rng.normal(size=(8, 3))
    fig, (ax, counts, image) = new_figure(3)
    curve(ax, x, runs, "measured")
    median_bars(ax, x, runs, label="bars")
    ax.errorbar([1, 2], [np.nan, 3], [np.nan, 0.5], label="holes")
    ax.plot(x, x)
    ax.fill_between(x, x - 1, x + 2, label="band")
    ax.axhline(0.25, label="bound")
    ax.set(xlabel="depth", title="a title")
    heights, edges, _ = counts.hist(runs[:, 0], bins=4, label="counts")
    counts.set_xticks([0, 1], ["zero", "one"])
    cells = image.pcolormesh([0, 2, 4], [0, 1, 2], [[1.0, 2], [3, 4]])
    fig.colorbar(cells, ax=image)
    data = data_of(fig).set_index("series")
    middle, low, high = median_interval(runs)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    close(data.loc["measured", ["x", "y"]], np.stack([x, np.median(runs, 1)], 1))
    for number in range(3):
        close(data.loc[f"measured, network {number + 1}", "y"], runs[:, number])
    close(data.loc["bars", ["x", "y", "low", "high"]], np.stack([x, middle, low, high], 1))
    close(data.loc["band", ["x", "low", "high"]], np.stack([x, x - 1, x + 2], 1))
    np.testing.assert_array_equal(data.loc["holes", ["y", "low"]], [[np.nan, np.nan], [3, 2.5]])
    unnamed = data[data.index.str.startswith("unnamed", na=False) & (data["panel"] == 1)]
    assert unnamed.index.nunique() == 1 and unnamed["y"].tolist() == x.tolist()
    assert data.loc["bound", "y"] == 0.25 and np.isnan(data.loc["bound", "x"])
    close(data.loc["counts", "y"], heights)
    close(data.loc["counts", "x"], (edges[:-1] + edges[1:]) / 2)
    assert data[data["panel"] == 3]["value"].tolist() == [1, 2, 3, 4]
    assert data[data["panel"] == 3]["x"].tolist() == [1, 3, 1, 3]
    assert set(data["panel"]) == {1, 2, 3}
    first, second, *_ = figure_csv(fig).splitlines()
    assert first == "# panel 1, a title; x: depth; y: no name"
    assert second == "# panel 2; x: (0 = zero, 1 = one); y: no name"


def test_a_figure_brings_its_data_and_is_drawn_as_before(shell_formatter):
    fig, ax = plt.subplots()
    ax.plot([1, 2], [0.1 + 0.2, 5], label="line")
    before, _ = shell_formatter.format(fig, include={"image/svg+xml"})
    bring_data(shell_formatter)
    after, told = shell_formatter.format(fig, include={"image/svg+xml"})
    assert after == before
    assert "1,line,1,0.3,,," in told["image/svg+xml"][DATA].splitlines()
    pixels = plt.imread(io.BytesIO(base64.b64decode(told["image/svg+xml"][PICTURE])))
    assert pixels.shape[1] == 1200 and pixels[0, 0].tolist() == [1, 1, 1, 1]
    _, told = shell_formatter.format(fig, include={"image/svg+xml"})
    assert PICTURE not in told["image/svg+xml"]


def test_a_figure_of_words_has_no_data():
    fig, ax = new_figure()
    ax.text(0, 0, "nothing")
    assert figure_csv(fig) == ""


@pytest.fixture
def shell_formatter():
    """A formatter that draws figures as SVG."""
    formatter = DisplayFormatter()
    draw = functools.partial(print_figure, fmt="svg", metadata={"Date": None})
    formatter.formatters["image/svg+xml"].for_type(Figure, draw)
    still = {"svg.hashsalt": "test", "figure.constrained_layout.use": False}  # drawn twice alike
    with plt.rc_context(still):
        yield formatter
