"""How makers tell, keep and resume their tables."""

import re

import pandas as pd
import pytest
import torch

from bnmlp.book import tables as results
from bnmlp.book.making import Maker, growth_table, holds, long_table, rows_table, section

DOC = """Rates of things: writes runs.csv and paths-30.csv beside itself.

OMP_NUM_THREADS=1 python book/data/things/make.py      # a minute

BNMLP_SCALE=paper python book/data/things/make.py      # larger
On a GPU.
"""
README = """# Stored results

What all hold.

## other

Other things.

## things

What all
tables hold.

`runs.csv`, `paths-30.csv`: a sum.

`runs.csv`: loss: a mean.

## more

More things.
"""


@pytest.fixture
def maker(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "DATA", tmp_path)
    (tmp_path / "things").mkdir()
    (tmp_path / "README.md").write_text(README)
    file = str(tmp_path / "things" / "make.py")
    program = {"__file__": file, "__doc__": DOC, "WIDTH": 3, "COLUMNS": ["loss"], "F": torch}
    return Maker(program)


def test_a_table_tells_what_the_readme_says_of_it(maker):
    assert maker.command == "OMP_NUM_THREADS=1 python book/data/things/make.py"
    both = "What all tables hold."
    assert maker.about("runs") == [both, "a sum.", "loss: a mean.", "WIDTH 3"]
    assert maker.about("paths-5") == [both, "a sum.", "WIDTH 3"], "at whatever size"
    assert maker.about("ends") == [both, "WIDTH 3"]
    maker.store("runs", pd.DataFrame({"loss": [2.0]}, pd.Index([1], name="seed")), "one more")
    told = results.stored_table("things/runs.csv").attrs["provenance"]
    assert "tables hold. a sum. loss: a mean. WIDTH 3 one more command: OMP" in told


def test_tables_are_made_by_the_functions_of_their_names(maker, monkeypatch):
    def all_runs():
        return pd.DataFrame({"loss": [1 / 3]}, pd.Index([1], name="seed"))

    def paths():
        raise AssertionError("not asked for")

    monkeypatch.setattr("sys.argv", ["make.py", "all-runs"])
    maker.make(all_runs, paths, about=["one more"], float_format="%.2g")
    table = results.stored_table("things/all-runs.csv")
    assert table["loss"].tolist() == [0.33]
    assert "WIDTH 3 one more command" in table.attrs["provenance"]
    monkeypatch.setattr("sys.argv", ["make.py"])
    with pytest.raises(AssertionError, match="not asked for"):
        maker.make(all_runs, paths)


def test_every_stored_table_is_told_and_every_section_has_its_folder():
    text = (results.DATA / "README.md").read_text()
    folders = {path.parent.name for path in results.DATA.glob("*/make.py")}
    assert set(re.findall(r"^## (.*)$", text, re.MULTILINE)) == folders
    for folder in folders:
        paragraphs = section(text, folder)
        named = {name for p in paragraphs for name in re.findall(r"`(\S+\.csv)`", p)}
        tables = {path.name for path in (results.DATA / folder).glob("*.csv")}
        assert named <= tables | {"gpu.csv"}
        general = any(not p.startswith("`") for p in paragraphs)
        assert general or tables <= named, folder


def test_tables_grow_by_what_they_lack(maker):
    asked = []

    def record(kind, rate):
        asked.append((kind, rate))
        return {"runs": long_table({"loss": torch.tensor([rate, 2.0])}, seed=range(2))}

    root = 2**0.5  # written with four digits, and found again
    cells = [{"kind": k, "rate": r} for k in ("a", "b") for r in (1.0, root)]
    maker.grow(["runs"], cells[:3], record)
    maker.grow(["runs"], cells, record)
    assert asked == [("a", 1.0), ("a", root), ("b", 1.0), ("b", root)]
    table = results.stored_table("things/runs.csv").reset_index()
    assert list(table) == ["kind", "rate", "seed", "loss"]
    assert [holds(table, cell).sum() for cell in cells] == [2, 2, 2, 2]


def test_rows_of_a_cell_are_replaced_where_the_last_table_lacks_them(maker):
    def record(kind):
        return {name: long_table({"x": [1.0]}, seed=[0]) for name in ("paths", "runs")}

    stale = pd.DataFrame({"seed": [7], "x": [9.0]}, pd.Index(["a"], name="kind"))
    maker.store("paths", stale)
    maker.grow(["paths", "runs"], [{"kind": "a"}], record)
    assert results.stored_table("things/paths.csv")["x"].tolist() == [1.0]


def test_tables_by_labels():
    rows = rows_table({("a", 1): (2.0, 3.0)}, ["kind", "rate"], ["x", "y"])
    assert rows.loc[("a", 1), "y"] == 3
    logs = torch.tensor([[9.0], [4.0], [1.25]], dtype=torch.float64)
    assert growth_table(logs, [1, 2], 1)[0].to_dict() == {1: 0.0, 2: 2.8}
