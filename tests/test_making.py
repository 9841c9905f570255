"""How makers tell, keep and resume their tables."""

import pandas as pd
import pytest
import torch

from bnmlp import load_dataset
from bnmlp.book import tables as results
from bnmlp.book.making import Maker, epoch_batches, growth_table, holds, long_table, rows_table
from bnmlp.data.batches import epoch_orders

DOC = """Rates of things: writes runs.csv and paths.csv beside itself.

OMP_NUM_THREADS=1 python book/data/things/make.py      # a minute

What both
tables hold.

BNMLP_SCALE=paper python book/data/things/make.py      # larger
On a GPU.

runs.csv: loss: a mean.
"""


@pytest.fixture
def maker(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "DATA", tmp_path)
    (tmp_path / "things").mkdir()
    return Maker(
        {
            "__file__": "/there/things/make.py",
            "__doc__": DOC,
            "WIDTH": 3,
            "COLUMNS": ["loss"],
            "F": torch,
        }
    )


def test_a_table_tells_what_the_docstring_of_its_maker_says_of_it(maker):
    assert maker.command == "OMP_NUM_THREADS=1 python book/data/things/make.py"
    assert maker.about("runs") == ["What both tables hold.", "loss: a mean.", "WIDTH 3"]
    assert maker.about("paths") == ["What both tables hold.", "WIDTH 3"]
    maker.store("runs", pd.DataFrame({"loss": [2.0]}, pd.Index([1], name="seed")), "one more")
    told = results.stored_table("things/runs.csv").attrs["provenance"]
    assert "What both tables hold. loss: a mean. WIDTH 3 one more command: OMP" in told


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


def test_batches_follow_the_orders_of_epochs_and_skip_what_is_left_over():
    data = load_dataset("digits")
    n = len(data.train_x) // 2 - 1
    labels = [y for _, y in epoch_batches(data, n, 2, 3, seed=5)]
    order = epoch_orders(5, 2, 1, len(data.train_x))
    assert labels[2].equal(data.train_y[order[:, :n]]), "the third batch is the second epoch's"
