"""Makers of stored results, run at small size: also those whose full size needs a GPU."""

import importlib.util
import sys

import pytest

from bnmlp.book import tables as results

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
        monkeypatch.setitem(sys.modules, "maker", module)
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


def test_transformers_go_on_after_an_interruption_between_their_tables(maker, monkeypatch):
    make = maker("transformers")
    sizes = {"DEPTH": 1, "WIDTH": 8, "BATCH": 4, "STEPS": 3, "SEEDS": 2, "RECORDED": (0, 2)}
    for name, value in (sizes | {"RATES": dict.fromkeys(make.RATES, (0.1,))}).items():
        monkeypatch.setattr(make, name, value)
    store, calls = make.store_table, []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 4:  # the second table of the second run
            raise KeyboardInterrupt
        store(*args, **options)

    monkeypatch.setattr(make, "store_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make.main()
    make.main()
    keys = ["network", "schedule", "rate", "seed"]
    runs = results.stored_table("transformers/runs.csv").reset_index()
    paths = results.stored_table("transformers/paths.csv").reset_index()
    assert len(runs) == len(make.NETWORKS) * len(make.RATES) * 2
    assert not runs.duplicated(keys).any()
    assert len(paths) == 3 * len(runs)
    assert not paths.duplicated([*keys, "spread"]).any()
    start = paths.pivot(index=keys, columns="spread", values="0")
    assert start["map"].equals(start["all"]), "the map begins where training does"
