"""The report as text, table, plot, JSON, page, and from the command line."""

import ast
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import bnmlp
from bnmlp import BNMLP, Report, measure
from bnmlp.cli import app
from bnmlp.diagnosis.findings import LABELS, Finding
from bnmlp.diagnosis.table import COLUMNS

HERE = Path(__file__).parents[1]


def chain(depth=50, width=40):
    parts = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        nn.init.xavier_normal_(linear.weight)
        parts += [linear, nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    return measure(chain(), torch.randn(60, 40), torch.randint(10, (60,)))


def test_the_text_says_what_is_wrong_first_and_then_the_layers(report):
    lines = str(report).splitlines()
    assert lines[0].startswith("Sequential: 51 layers, 151 calls")
    order = [next(i for i, line in enumerate(lines) if line.startswith(word))
             for word in ("Found", "Measured", "Calls")]  # fmt: skip
    assert order == sorted(order)
    assert "SERIOUS  Gradients explode" in str(report)
    assert "What helps: Put a skip connection" in str(report)
    assert "(24 of 151; .layers has all)" in str(report)
    assert "nan" not in str(report)


def test_every_number_on_statistics_has_words(report):
    known = {k for k, v in report.statistics.summary.items() if v is not None}
    assert {"accuracy_running", "spread_lost", "sure"} <= known <= set(LABELS)
    for key in known:
        assert f"  {LABELS[key]:41} " in str(report)


def test_the_table_has_a_row_for_each_call_and_described_columns(report):
    table = report.layers
    assert len(table) == 151 and table["name"].is_unique
    assert list(table.columns) == ["name", "kind", "shape", "dtype", *COLUMNS]
    assert table["layer"].dropna().tolist() == list(range(1, 52))


def test_json_holds_everything_and_no_nan(report, tmp_path):
    path = tmp_path / "report.json"
    text = report.to_json(path)
    content = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert json.loads(path.read_text()) == content
    assert content["schema"] == "bnmlp.report/1"
    assert content["verdict"] == "gradient-explosion"
    assert content["rates"]["weights"]["value"] == report.rate.value
    assert len(content["layers"]) == 151
    row = content["layers"][0]
    assert set(COLUMNS) < set(row) and row["dead"] is None and "dead" in content["absent"]
    assert row["mean_square"] == report.layers.loc[0, "mean_square"]


def test_what_is_not_finite_is_null_in_json_with_its_reason():
    class Root(nn.Module):
        def forward(self, x):
            return (x - 100).sqrt()

    model = nn.Sequential(nn.Linear(4, 4), Root(), nn.Linear(4, 3))
    found = json.loads(measure(model, torch.randn(5, 4), torch.randint(3, (5,))).to_json())
    row = found["layers"][1]
    assert row["mean_square"] is None and row["not_finite"]["mean_square"] == "nan"
    assert found["findings"][0]["evidence"]["call"] == "1"


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_for_light_and_dark(report, tmp_path):
    path = tmp_path / "report.html"
    text = report.to_html(path)
    assert path.read_text(encoding="utf8") == text
    page = Page(text)
    assert not page.open and not page.links and "script" not in page.tags
    assert page.tags.count("svg") == 3 and page.tags.count("tr") == 152
    assert "prefers-color-scheme: dark" in text and "http" not in text
    assert "Gradients explode" in text and "practice/measure-your-network" in text
    assert len(text) < 300_000


def test_names_are_escaped_on_the_page():
    model = nn.Sequential()
    model.add_module("<b>&", nn.Linear(4, 3))
    text = measure(model, torch.randn(5, 4), torch.randint(3, (5,))).to_html()
    assert "<b>" not in text and "&lt;b&gt;&amp;" in text


def test_the_plot_shows_all_layers_without_pyplot(report):
    figure = report.plot()
    assert len(figure.axes) == 3
    assert len(figure.axes[0].lines[0].get_xdata()) == 51
    replicas = measure(
        BNMLP(20, 20, 8, 10, replicas=3), torch.randn(30, 20), torch.randint(10, (30,))
    )
    assert len(replicas.plot().axes[1].lines) == 3


def test_replicas_have_one_report():
    x, y = torch.randn(30, 20), torch.randint(10, (30,))
    found = measure(BNMLP(20, 20, 30, 10, replicas=3), x, y)
    assert "3 replicas of BNMLP" in str(found)
    assert len(json.loads(found.to_json())["layers"]) == 3 * len(found.tables[0])
    assert found.to_html().count("<h2>Calls of replica") == 3


def test_the_core_needs_torch_and_numpy_only():
    """Pandas and Matplotlib are asked for by the table and the plot alone."""
    late = {"pandas", "matplotlib", "scipy", "sklearn", "tqdm"}
    for path in sorted((HERE / "bnmlp" / "diagnosis").glob("*.py")):
        if path.name == "plots.py":  # imported where a plot is asked for
            continue
        for node in _at_import(ast.parse(path.read_text(encoding="utf8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            assert not late & {str(name).split(".")[0] for name in names}, path.name


def _at_import(tree):
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node


def test_measuring_and_printing_work_where_pandas_and_matplotlib_cannot_be_imported():
    program = """
import sys, torch, bnmlp
for name in list(sys.modules):
    if name.split(".")[0] in ("pandas", "matplotlib"):
        del sys.modules[name]
sys.modules["pandas"] = sys.modules["matplotlib"] = None
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
report = bnmlp.measure(model, torch.randn(5, 4), torch.randint(3, (5,)))
print(report); report.to_json(); report.to_html()
for ask in (lambda: report.layers, report.plot):
    try:
        ask()
    except ImportError:
        print("refused")
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.count("refused") == 2, found.stderr


def test_advice_without_a_chapter_is_refused():
    with pytest.raises(ValueError, match="names no chapter"):
        Finding("kind", "note", "A sentence.", advice="Do this")
    with pytest.raises(ValueError, match="unknown severity"):
        Finding("kind", "grave", "A sentence.")
    assert Finding("kind", "note", "A.", chapter="theory/one-layer").link == "theory/one-layer.html"


def test_chapters_that_are_named_exist():
    text = "".join(
        p.read_text(encoding="utf8") for p in (HERE / "bnmlp" / "diagnosis").glob("*.py")
    )
    parts = "practice|network|theory|initialisation|training|history|dynamics|curvature"
    named = set(re.findall(rf'"((?:{parts})/[a-z0-9-]+)"', text))
    assert len(named) > 5
    for chapter in named:
        assert (HERE / "book" / f"{chapter}.md").is_file(), chapter


def run(*arguments):
    return CliRunner().invoke(app, ["measure", *map(str, arguments)])


def test_the_command_measures_a_function_of_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\ndef build(width=8):\n"
        "    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))\n"
    )
    page, data = tmp_path / "r.html", tmp_path / "r.json"
    found = run(f"{tmp_path}/mine.py:build", "--input", "9x6", "--argument", "width=5",
                "--classes", 3, "--html", page, "--json", data)  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "independent normal numbers, no data" in found.output
    assert "mean cross entropy" in found.output
    assert json.loads(data.read_text())["layers"][0]["shape"] == [9, 5]
    assert page.read_text().startswith("<!doctype html>")


def test_the_command_knows_models_of_packages_and_data():
    found = run("torchvision.models:resnet18", "--input", "4x3x32x32", "--level", "layers",
                "--argument", "num_classes=5")  # fmt: skip
    assert found.exit_code == 0 and "ResNet: 21 layers, 21 calls" in found.output, found.output
    own = run("bnmlp.networks.convolutional:simple_cnn", "--data", "mnist5k", "--images",
              "--batch", 20, "--argument", "side=28", "--argument", "in_channels=1")  # fmt: skip
    assert own.exit_code == 0 and "20 training samples of mnist5k" in own.output, own.output
    tokens = run("torch.nn:Embedding", "--argument", "num_embeddings=7", "--argument",
                 "embedding_dim=4", "--input", "3x5", "--integers", 7)  # fmt: skip
    assert tokens.exit_code == 0 and "random integers below 7" in tokens.output, tokens.output


LINEAR = ["torch.nn:Linear", "--argument", "in_features=3", "--argument", "out_features=4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torch.nn:Linear"], "give --input SHAPE"),
        (["torch.nn:Linear", "--input", "ax3"], "expected sizes"),
        (["torch.nn:Nothing", "--input", "2x3"], "cannot use torch.nn:Nothing"),
        (["torch.nn:Linear", "--input", "2x3"], "torch.nn:Linear failed"),
        ([*LINEAR, "--input", "2x7"], "called with a tensor of shape (2, 7), float32"),
        ([*LINEAR, "--input", "2x3", "--integers", 9], "called with a tensor of shape (2, 3), int"),
        ([*LINEAR, "--input", "9x3", "--classes", 40], "but the output has 4 classes"),
        ([*LINEAR, "--input", "2x3", "--html", "missing/r.html"], "there is no folder missing"),
        ([*LINEAR, "--data", "nothing"], "unknown dataset"),
        (
            ["torch.nn:BatchNorm1d", "--argument", "num_features=3", "--input", "1x3"],
            "training=Fal",
        ),
        (["missing.py:build", "--input", "2x3"], "no file"),
        (["builtins:dict", "--input", "2x3"], "expected a module, got dict"),
    ],
)
def test_the_command_explains_what_is_missing(arguments, message):
    found = run(*arguments)
    assert found.exit_code == 1 and message in found.output, found.output
    assert "Traceback" not in found.output and isinstance(found.exception, SystemExit)


def test_the_report_is_a_public_name():
    assert bnmlp.Report is Report and "measure" in bnmlp.__all__
    assert np.isfinite(Report.__dataclass_fields__["tables"].default is not None)
