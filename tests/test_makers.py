"""Makers of stored results, run at small size: also those whose full size needs a GPU."""

import importlib.util

import pytest

from bnmlp import results

MAKERS = results.DATA


@pytest.fixture
def maker(monkeypatch, tmp_path):
    """Load the program of a folder below book/data so that it writes elsewhere."""
    monkeypatch.setenv("BNMLP_SCALE", "smoke")
    monkeypatch.setattr(results, "DATA", tmp_path)

    def load(folder):
        (tmp_path / folder).mkdir()
        spec = importlib.util.spec_from_file_location("maker", MAKERS / folder / "make.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(__import__("sys").modules, "maker", module)
        spec.loader.exec_module(module)
        return module

    return load


def test_resnets_of_56_and_110_layers_train_under_every_schedule(maker):
    make = maker("short-and-noshort")
    make.main()
    runs = results.stored_table("short-and-noshort/runs.csv").reset_index()
    assert set(runs["depth"]) == {56, 110}
    short, plain = (set(runs[runs["network"] == k]["schedule"]) for k in ("Short", "NoShort"))
    assert short == set(make.SCHEDULES)
    assert plain == short - {"tilted"}
    assert (runs[["loss", "spread", "turns"]] >= 0).all().all()
    turns = runs.groupby(["schedule", "depth"])["turns"].mean()
    assert turns["equalised"].max() < 1e-3
    tilt = turns["tilted"] / ([54 * make.TILT, 108 * make.TILT])
    assert tilt.sub(1).abs().max() < 0.01, f"imposed spreads are {tilt.tolist()} of those asked for"


def test_a_maker_goes_on_after_an_interruption(maker, monkeypatch):
    make = maker("short-and-noshort")
    train, calls = make.train, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*args)

    monkeypatch.setattr(make, "SIZES", make.SIZES.__class__(**vars(make.SIZES) | {"blocks": (1,)}))
    monkeypatch.setattr(make, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make.main()
    make.main()
    assert len(calls) == len(set(calls)) + 1, "only the interrupted run is made twice"
    runs = results.stored_table("short-and-noshort/runs.csv").reset_index()
    assert not runs.duplicated(["network", "schedule", "rate", "seed"]).any()
    assert set(runs["schedule"]) == set(make.SCHEDULES)
