"""Captions of a small page, built by Sphinx: kind, number, and what folded code is of."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

EXTENSION = Path(__file__).parents[1] / "book" / "_ext"
CONFIG = """
extensions = ["myst_nb", "bnmlp_book.captions"]
nb_execution_mode = "off"
numfig = True
"""
KERNEL = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
TEXT = "# Page\n\n{numref}`tab-one`, {numref}`fig-one`, {numref}`tab-two`, {numref}`fig-two`."
CELLS = [  # name of the figure, tags, source, output
    ("tab-one", [], "table", "<table></table>"),
    ("fig-one", ["hide-input"], "a = 1\n\nb = 2\na + b", "<p>drawn</p>"),
    ("tab-two", ["hide-input"], "1 +\\\n2", "<table></table>"),
    ("fig-two", ["hide-cell"], "one", "<p>drawn</p>"),
    (None, ["hide-input"], "nothing = None", None),
    (None, ["hide-output"], "shown", "<p>hidden</p>"),
]


def cell(name, tags, source, output):
    outputs = [nbformat.v4.new_output("display_data", {"text/html": output})] if output else []
    metadata = {"tags": tags}
    if name:
        metadata["mystnb"] = {"figure": {"name": name, "caption": "What is seen."}}
    return nbformat.v4.new_code_cell(source, outputs=outputs, metadata=metadata)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    (folder / "conf.py").write_text(CONFIG)
    cells = [nbformat.v4.new_markdown_cell(TEXT), *(cell(*row) for row in CELLS)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), folder / "index.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", folder, folder / "html"],
        env={**os.environ, "PYTHONPATH": str(EXTENSION)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return pytest.importorskip("bs4").BeautifulSoup(
        (folder / "html" / "index.html").read_text(), "html.parser"
    )


def test_tables_and_figures_are_numbered_apart_and_by_their_kind(page):
    numbers = {
        figure["id"]: figure.find(class_="caption-number").get_text().strip()
        for figure in page.find_all("figure")
    }
    expected = {
        "tab-one": "Table 1",
        "tab-two": "Table 2",
        "fig-one": "Fig. 1",
        "fig-two": "Fig. 2",
    }
    assert numbers == expected
    links = {a["href"].lstrip("#"): a.get_text() for a in page.find_all("a", class_="internal")}
    assert expected.items() <= links.items()


def test_folded_code_says_what_it_is_of(page):
    labels = [tag.summary.get_text() for tag in page.find_all(class_="folded-code")]
    assert labels == [
        "Code of Figure 1, 4 lines",
        "Code of Table 2, 2 lines",
        "Code of Figure 2, 1 line",
        "Code, 1 line",
    ]
    texts = [tag.pre.get_text().strip() for tag in page.find_all(class_="folded-code")]
    assert texts == [source for _, tags, source, _ in CELLS if tags and tags != ["hide-output"]]


def test_a_figure_comes_before_its_code(page):
    figure = page.find(id="fig-one")
    assert figure.find_next(class_="folded-code").summary.get_text().startswith("Code of Figure 1")


def test_hidden_outputs_are_left_as_they_are(page):
    assert page.find(class_="below-input").find("p", string="hidden")
