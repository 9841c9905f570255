"""Makers of stored results, run at small size: also those whose full size needs a GPU."""

import importlib.util
import shutil
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from bnmlp.book import tables as results
from bnmlp.training import TrainingRun, train

MAKERS = results.DATA
SMALL = {  # what to put in place of a program's constants
    "depth-and-training/last_gain.py": {
        "WIDTH": 8, "STEPS": 20, "KINDS": {"4": (4, 4), "4, gain of 9": (4, 9)},
    },
    "dose/make.py": {"DEPTHS": (2, 3), "WIDTH": 8, "SEEDS": 2, "STEPS": 3, "SPAN": (0, 1)},
    "eight-quantities/make.py": {
        "RUN": TrainingRun(width=6, depth=2, replicas=1, batch_size=1000, epochs=1, measure_every=1,
                           curvature_samples=2000, quantities=("gradient", "loss")),
        "SEEDS": 1, "MOMENTS": (0,), "SAMPLES": 40, "POOLED": 4,
    },
    "explosion-against-gain/make.py": {"DEPTH": 30, "WIDTH": 8, "REPLICAS": 2, "EVERY": 10},
    "gain-exponent/make.py": {"DEPTH": 520, "WIDTH": 4, "REPLICAS": 2, "EXPONENTS": (0.2, 0.5)},
    "gain-while-training/make.py": {
        "DEPTH": 40, "WIDTH": 10, "BATCH": 500, "EPOCHS": 2, "RATES": (0.01,),
        "EXPONENTS": (0.0, 0.4), "KEPT": (0, 40),
    },
    "isometry-widths/make.py": {"WIDTHS": (8,), "DEPTH": 9, "NETWORKS": 2},
    "mlps-to-forty-layers/make.py": {
        "DATA": "mnist5k", "REPLICAS": 2,
        "GROUPS": [
            ("fashion", ("plain",), 2**0.5, 1000, 1, (4,)),
            ("fashion", ("skip",), 1.0, 1000, 2, (4,)),
            ("fashion-20-depths", ("batch",), 1.0, 2000, 6, (3,)),
        ],
    },
    "muon/make.py": {
        "DEPTHS": (3,), "WIDTH": 8, "SEEDS": 2, "STEPS": 2, "LAST": 1,
        "RATES": {"sgd": {3: (0.1,)}, "muon": {3: (0.01,)}},
    },
    "noisy-quadratic-model/make.py": {
        "NETWORKS": 1, "SAMPLES": 200, "EDGE": {"rates": (0.5,), "steps": (0, 3)},
        "ALIGNED": (0, 3), "MOST": 20,
        "TARGET": 2.3, "BETWEEN": 2.4, "MINIMA": {"rates": (0.1,), "batches": (8, 200)},
        "PLACES": {"early": 2}, "AHEAD": 3, "RUNS": 2,
    },
    "on-the-sphere/make.py": {
        "DEPTHS": (3,), "WIDTH": 8, "SEEDS": 2, "STEPS": 2, "LAST": 1, "WARMUP": 2,
        "OCTAVES": {"free": (-2,), "turned": (-5,)},
    },
    "orthogonality/make.py": {"DEPTH": 30, "WIDTH": 8, "STEPS": 4, "RECORDED": (2, 4)},
    "other-tools/make.py": {
        "TOOLS": ("bnmlp",), "DEPTH": 6, "WIDTH": 10, "BATCH": 20, "STEPS": 1, "BLOCKS": 2,
    },
    "patients/make.py": {
        "SEEDS": 1, "STEPS": {"perceptron": 1, "resnet": 2, "averaged resnet": 2, "transformer": 1},
    },
    "rank-of-batches/make.py": {"NAMES": ("mnist5k",), "SIZES": (16,), "BATCHES": 2},
    "short-and-noshort/make.py": {
        "SIZES": SimpleNamespace(
            dataset="photo_patches", in_channels=3, pooled=4, blocks=(9, 18), channels=2, batch=8,
            steps=2, warmup=2, rates=(0.1,), recorded=(0, 1), seeds=1,
        ),
    },
    "spread-heals/make.py": {
        "DEPTH": 10, "WIDTH": 8, "REPLICAS": 2, "SPREADS": (-4, 1), "TURNS": (0.05,),
        "STEPS": dict.fromkeys(("rates", "kinds", "constrained", "decay"), 22),
    },
    "transformers/make.py": {
        "DEPTH": 1, "WIDTH": 8, "BATCH": 4, "STEPS": 3, "SEEDS": 2, "RECORDED": (0, 2),
        "RATES": dict.fromkeys(("constant", "equalised", "linear", "momentum, linear"), (0.1,)),
    },
    "what-it-costs/gpu.py": {"DEPTHS": (3,), "REPLICAS": (1, 2)},
    "what-it-costs/make.py": {"DEPTH": 1000, "WIDTH": 8, "N": 8},
}  # fmt: skip


@pytest.fixture
def maker(monkeypatch, tmp_path):
    """Load a program below book/data so that it is small and writes elsewhere."""
    monkeypatch.setenv("BNMLP_SCALE", "smoke")
    monkeypatch.setattr(results, "DATA", tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["make.py"])

    def load(name):
        (tmp_path / name).parent.mkdir()
        spec = importlib.util.spec_from_file_location("maker", MAKERS / name)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "maker", module)
        spec.loader.exec_module(module)
        for constant, value in SMALL.get(name, {}).items():
            assert hasattr(module, constant), f"{name} has no {constant}"
            monkeypatch.setattr(module, constant, value)
        return module

    return load


def columns_of(folder):
    return {p.stem: list(pd.read_csv(p, comment="#", nrows=2)) for p in folder.glob("*.csv")}


@pytest.mark.parametrize("name", [name for name in SMALL if "noshort" not in name])
def test_a_maker_writes_tables_with_the_columns_of_those_that_are_stored(name, maker, tmp_path):
    torch.manual_seed(0)
    maker(name).main()
    folder = name.split("/")[0]
    made, stored = columns_of(tmp_path / folder), columns_of(MAKERS / folder)
    assert made
    for table, columns in made.items():
        known = [
            c for t, c in stored.items() if t.rstrip("0123456789") == table.rstrip("0123456789")
        ]
        if not known:
            assert table in ("gpu", "fashion-20-depths"), f"no stored table is called {table}"
        named = {c for c in columns if not c.isdigit()}
        for expected in known:
            assert named == {c for c in expected if not c.isdigit()}, f"{table} has other columns"
    told = (tmp_path / folder / f"{table}.csv").read_text()
    assert f"# command: {results_command(name)}; commit" in told


def results_command(name):
    lines = (MAKERS / name).read_text().split('"""')[1].splitlines()
    return next(line for line in lines if f"python book/data/{name}" in line).split("  ")[0]


@pytest.mark.parametrize("folder", ["depth-and-training", "running-statistics"])
def test_makers_gather_the_folders_of_runs(folder, maker, monkeypatch, tmp_path):
    runs = tmp_path / "mnist5k"
    for bias in (False, True):
        run = TrainingRun(name=f"bias-{bias}", width=8, depth=3, bias=bias, epochs=1, replicas=2)
        train(run, runs / run.name, progress=False)
    make = maker(f"{folder}/make.py")
    monkeypatch.setattr(sys, "argv", ["make.py", str(runs)])
    make.main()
    made, stored = columns_of(tmp_path / folder), columns_of(MAKERS / folder)
    assert made == {name: stored[name] for name in made}
    rows = pd.read_csv(next((tmp_path / folder).glob("*.csv")), comment="#")
    assert set(rows["name"]) == {"bias-False", "bias-True"}


def test_a_run_that_was_further_when_it_was_stored_keeps_its_rows(maker, monkeypatch, tmp_path):
    runs, make = tmp_path / "mnist5k", maker("depth-and-training/make.py")
    run = TrainingRun(name="a", width=8, depth=3, epochs=2)
    monkeypatch.setattr(sys, "argv", ["make.py", str(runs)])
    for epochs, other in ((2, "b"), (1, "c")):
        for name in ("a", other):
            train(
                run.model_copy(update={"name": name, "epochs": epochs}), runs / name, progress=False
            )
        make.main()
        shutil.rmtree(runs)
    path = tmp_path / "depth-and-training" / "mnist5k.csv"
    rows = pd.read_csv(path, comment="#")
    assert dict(rows.groupby("name")["epoch"].max()) == {"a": 2, "b": 2, "c": 1}
    assert "from an earlier gathering: a, b" in path.read_text("utf-8")


def test_tools_that_are_not_installed_are_named_with_the_remedy(maker, monkeypatch):
    make = maker("other-tools/make.py")
    monkeypatch.setattr(make, "TOOLS", ("bnmlp", "no-such-tool"))
    with pytest.raises(SystemExit, match="not installed: no-such-tool.*pip install no-such-tool"):
        make.main()


def test_resnets_of_56_and_110_layers_train_under_every_schedule(maker):
    make = maker("short-and-noshort/make.py")
    make.main()
    runs = results.stored_table("short-and-noshort/runs.csv").reset_index()
    assert set(runs["depth"]) == {56, 110}
    short, plain = (set(runs[runs["network"] == k]["schedule"]) for k in ("Short", "NoShort"))
    assert short == set(make.SCHEDULES)
    assert plain == short - {"tilted"}
    assert columns_of(MAKERS / "short-and-noshort")["runs"] == list(runs)
    assert (runs[["loss", "spread", "turns"]] >= 0).all().all()
    turns = runs.groupby(["schedule", "depth"])["turns"].mean()
    assert turns["equalised"].max() < 1e-3
    tilt = turns["tilted"] / ([54 * make.TILT, 108 * make.TILT])
    assert tilt.sub(1).abs().max() < 0.01, f"imposed spreads are {tilt.tolist()} of those asked for"


def test_a_maker_goes_on_after_an_interruption(maker, monkeypatch):
    make = maker("short-and-noshort/make.py")
    record, calls = make.record, []

    def interrupted(**cell):
        calls.append(tuple(cell.values()))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return record(**cell)

    monkeypatch.setattr(make, "SIZES", make.SIZES.__class__(**vars(make.SIZES) | {"blocks": (1,)}))
    monkeypatch.setattr(make, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make.main()
    make.main()
    assert len(calls) == len(set(calls)) + 1, "only the interrupted run is made twice"
    runs = results.stored_table("short-and-noshort/runs.csv").reset_index()
    assert not runs.duplicated(["network", "schedule", "rate", "seed"]).any()
    assert set(runs["schedule"]) == set(make.SCHEDULES)


def test_transformers_go_on_after_an_interruption_between_their_tables(maker, monkeypatch):
    make = maker("transformers/make.py")
    store, calls = results.store_table, []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 4:  # the second table of the second run
            raise KeyboardInterrupt
        store(*args, **options)

    monkeypatch.setattr(results, "store_table", interrupted)
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
