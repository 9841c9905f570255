import base64
import re
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch

from bnmlp.book import tables as results
from bnmlp.book.intervals import half_width, mean_and_error, median_interval, ranged
from bnmlp.book.tables import offer_csv, store_table, stored_table
from bnmlp_book import status


def test_stored_tables_tell_their_making():
    table = stored_table("what-it-costs/depth-100000.csv")
    assert table.index.name == "layer"
    assert {"orthogonal_0", "gaussian_0"} <= set(table.columns)
    assert "command: python book/data/what-it-costs/make.py" in table.attrs["provenance"]


def test_a_table_comes_back_as_it_was_stored(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "DATA", tmp_path)
    table = pd.DataFrame({"rate": [0.125, 2.0]}, index=pd.Index([1, 2], name="layer"))
    store_table(table, "a.csv", ["rates", "seed 0"], command="python make.py", minutes=3)
    back = stored_table("a.csv")
    pd.testing.assert_frame_equal(back, table)
    told = back.attrs["provenance"]
    assert re.match(r"rates seed 0 command: python make\.py; commit \w+", told)
    assert "device: cpu" in told
    assert "minutes: 3.0" in told


def test_the_commit_is_that_of_the_clone_and_of_no_repository_around_it(tmp_path):
    def git(*command, at):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.check_output(["git", "-C", at, *identity, *command], text=True).strip()

    clone = tmp_path / "outer" / "clone"
    clone.mkdir(parents=True)
    git("init", "--quiet", at=clone.parent)
    git("commit", "--quiet", "--allow-empty", "--message=one", at=clone.parent)
    assert results.commit(clone.parent) == git("rev-parse", "--short", "HEAD", at=clone.parent)
    assert results.commit(clone) == status.commit(clone) == "unknown"
    git("init", "--quiet", at=clone)
    (clone / "file").write_text("")
    git("add", "file", at=clone)
    git("commit", "--quiet", "--message=two", at=clone)
    name = git("rev-parse", "HEAD", at=clone)
    assert name.startswith(results.commit(clone)) and name.startswith(status.commit(clone))
    (clone / "file").write_text("changed")
    assert results.commit(clone).endswith("with changes")
    assert status.commit(clone) == f"{name[:10]} with changes"


def test_a_table_too_heavy_for_a_clone_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "DATA", tmp_path)
    with pytest.raises(ValueError, match="thin it out"):
        store_table(pd.DataFrame({"x": range(20_000)}), "a.csv", [], command="none")
    assert not list(tmp_path.iterdir())


def test_a_missing_stored_table_is_named():
    with pytest.raises(FileNotFoundError, match=r"no nowhere/a\.csv .* named FOLDER/TABLE\.csv"):
        stored_table("nowhere/a.csv")


def test_an_offered_csv_is_the_table(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    table = pd.DataFrame({"rate": [0.125, 2.0]}, index=pd.Index([1, 2], name="layer"))
    offer_csv(table, "rates.csv")
    link = shown[0].data
    assert 'download="rates.csv"' in link
    encoded = re.search(r"base64,([^\"]+)", link)[1]
    assert base64.b64decode(encoded).decode() == "layer,rate\n1,0.125\n2,2\n"


def test_a_csv_too_heavy_for_a_page_is_refused():
    with pytest.raises(ValueError, match="thin it out"):
        offer_csv(pd.DataFrame({"x": range(20_000)}), "x.csv")


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    median, low, high = median_interval(rng.exponential(size=(20_000, 10)))
    covered = ((low <= np.log(2)) & (np.log(2) <= high)).mean()
    # Binomial(10, 1/2) between 2 and 8: 97.9 %, the least that order statistics can do above 95 %.
    assert abs(covered - 0.9785) < 0.005
    assert ((low <= median) & (median <= high)).all()
    assert [float(v) for v in median_interval(torch.arange(1.0, 11.0))] == [5.5, 2.0, 9.0]
    assert [float(v) for v in median_interval([3.0, 1.0, 2.0])] == [2.0, 1.0, 3.0]


def test_the_interval_of_values_without_a_number_is_none():
    values = np.array([[1.0, 2.0, np.nan, 4.0], [1.0, 2.0, 3.0, 4.0]])
    for end, expected in zip(median_interval(values), (2.5, 1.0, 4.0), strict=True):
        assert np.isnan(end[0]) and end[1] == expected


@pytest.mark.parametrize("networks", [2, 5, 10])
def test_half_the_interval_of_a_mean_covers_it_as_often_as_it_says(networks):
    values = torch.randn(20_000, networks)
    half = half_width(values)
    covered = (values.mean(-1).abs() <= half).double().mean()
    assert abs(covered - 0.95) < 0.006, covered
    frozen = values.numpy().copy()
    frozen.flags.writeable = False  # as pandas hands rows out
    torch.testing.assert_close(half_width(frozen), half)


def test_a_single_value_has_no_interval():
    assert half_width(torch.tensor([[1.0], [2.0]])).isnan().all()


def test_a_range_holds_the_median_and_both_ends():
    assert ranged(torch.tensor([1.0, 4.0, 2.0])) == "2.00 (1.00 to 4.00)"
    assert ranged(np.array([0.1, 0.2, 0.3, 0.4]), ".1g") == "0.2 (0.1 to 0.4)"


def test_a_mean_comes_with_its_standard_error():
    mean, error = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3 and error == pytest.approx((14 / 3) ** 0.5 / 2)
