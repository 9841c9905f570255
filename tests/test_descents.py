"""Tables of descents, against loops over steps and networks."""

import numpy as np
import pytest
import torch

from bnmlp import BNMLP
from bnmlp.book.descents import ends_table, path_table, path_tables, spaced_steps, window_table
from bnmlp.measurements.rates import tilt
from bnmlp.theory.weight_dynamics import next_rate
from bnmlp.training.descent import descent, history, warmed


@pytest.fixture(scope="module")
def run():
    torch.manual_seed(0)
    model = BNMLP(6, 5, 9, 4, replicas=3, activation="relu", dtype=torch.float64)
    batches = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(4, (8,))) for _ in range(12)]
    return history(descent(model, batches, warmed(0.5, 4)))


def log_ratio(values):
    return [(v.max() / v.min()).log().item() for v in values.unbind(1)]  # of each network


def test_paths_are_medians_over_networks(run):
    table = path_table(run, [0, 3, 11])
    mapped = run.rates[0]
    for t in range(12):
        if t in table.index:
            row, base = table.loc[t], run.rates[t] * run.norms[t] ** 2
            spreads = log_ratio(run.rates[t])
            assert row["spread"] == pytest.approx(np.median(spreads))
            assert (row["low"], row["high"]) == pytest.approx((min(spreads), max(spreads)))
            assert row["map"] == pytest.approx(np.median(log_ratio(mapped)))
            assert row["base"] == pytest.approx(np.median(log_ratio(base)))
            assert row["norms"] == pytest.approx(2 * np.median(log_ratio(run.norms[t])))
            for name, values in (("tilt", run.rates[t]), ("base_tilt", base)):
                logs = values.log()
                tilts = (logs[:4].mean(0) - logs[-4:].mean(0)).median().item()
                assert row[name] == pytest.approx(tilts)
            assert row["rate"] == 0.5 * min(1, (t + 1) / 4)
        mapped = next_rate(mapped, 0.5 * min(1, (t + 1) / 4))


def test_paths_of_several_runs_have_their_labels(run):
    table = path_tables({("a", 1): run, ("b", 2): run}, ["kind", "rate"])
    assert table.index.names == ["kind", "rate", "step"]
    alone = path_table(run, table.loc[("b", 2)].index)
    assert table.loc[("b", 2)].equals(alone)
    assert alone.index[0] == 0 and alone.index[-1] == 11


def test_ends_are_of_every_network(run):
    table = ends_table(run, 5)
    for r in range(3):
        spreads = [(e.max() / e.min()).log().item() for e in run.rates[..., r]]
        assert table.loc[r, "loss"] == pytest.approx(run.losses[7:, r].mean().item())
        assert table.loc[r, "mean_spread"] == pytest.approx(np.mean(spreads))
        assert table.loc[r, "last_spread"] == pytest.approx(np.mean(spreads[7:]))


def test_windows_are_the_last_fifth_of_the_steps(run):
    table = window_table(run, [0, 4, 10], 2.0)
    for step, window in ((0, [0]), (4, [4]), (10, [9, 10])):
        rates, base = run.rates[window], run.base_norms[window]
        for layer in range(9):
            rms = rates[:, layer].square().mean(0).sqrt().median().item() / 2
            assert table.loc[step, layer + 1] == pytest.approx(rms)
        logs = base[:, 1:].square().mean(0).sqrt().log().mean().item()
        assert table.loc[step, "log_base"] == pytest.approx(logs)
        losses = run.losses[window].mean(0).median().item()
        assert table.loc[step, "loss"] == pytest.approx(losses)


def test_steps_are_spaced_evenly_in_ratio():
    assert spaced_steps(1000, 4, range(1)) == [0, 1, 10, 100, 1000]
    assert spaced_steps(5, 20) == [0, 1, 2, 3, 4, 5]


def test_tilt_is_positive_where_first_rates_are_larger():
    rates = torch.logspace(0, -7, 8)[:, None].double()  # of 8 layers
    torch.testing.assert_close(tilt(rates, 2), torch.tensor([6.0]).double() * np.log(10))
    torch.testing.assert_close(tilt(rates.flip(0), 2), -tilt(rates, 2))
