import io
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter

from bnmlp.book.plotting import curve, median_bars, new_figure, show_few_digits
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
