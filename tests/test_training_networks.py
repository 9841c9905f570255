"""Every network is trained by the command, killed at any moment, and goes on bit for bit."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from children import child, command
from test_loop import assert_equal_runs, interrupted

from bnmlp import TrainingRun, evaluate, load_dataset, load_model, read_layers, train
from bnmlp.data.batches import epoch_orders
from bnmlp.training import read_curvature, read_metrics, read_run, read_status
from bnmlp.training.folder import read_rates

OWN = """
from torch import nn

def build(width=8):
    layers = nn.Linear(64, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.2)
    return nn.Sequential(*layers, nn.Linear(width, 10))

def of_three_classes():
    return nn.Linear(64, 3)

def of_images():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))

def idle():
    return nn.Flatten()
"""
SMALL = {
    "dataset": "digits", "samples": 300, "epochs": 3, "batch_size": 50, "replicas": 2,
    "learning_rate": 0.02, "calibration_samples": 100,
}  # fmt: skip
NETWORKS = {
    "bnmlp": {"depth": 4, "width": 10},
    "skip_mlp": {"network": "skip_mlp", "depth": 6, "width": 12},
    "resnet": {"network": "resnet", "blocks": 1, "channels": 2, "shortcuts": False},
    "simple_cnn": {"network": "simple_cnn", "wider": 0.2},
    "transformer": {"network": "transformer", "depth": 2, "width": 8, "heads": 2, "side": 4},
    "residual_mlp": {"network": "residual_mlp", "depth": 3, "width": 8, "scheme": "keel"},
    "own": {"network": "mine.py:build", "options": {"width": 9}},
    "own alone": {"network": "mine.py:build", "options": {"width": 9}, "replicas": 1},
}
WAYS = {
    "adam": {"optimizer": "adam"},
    "rmsprop": {"optimizer": "rmsprop", "learning_rate": 1e-3},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine"},
    "momentum": {"momentum": 0.9, "weight_decay": 1e-3, "warmup_steps": 4},
    "critical": {"schedule": "critical", "learning_rate": 1.0, "momentum": 0.5},
    "equalised": {"schedule": "equalised", "weight_decay": 1e-3},
    "tilted": {"schedule": "tilted", "tilt": 0.3, "rates_every": 2},
}


@pytest.fixture(params=NETWORKS)
def fields(request, tmp_path, monkeypatch):
    """Fields of a run; the reader's own network lies in the working directory."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return SMALL | NETWORKS[request.param]


def train_words(fields):
    """The command line of a run, less its folder."""
    words = []
    for name, value in fields.items():
        option = f"--{name.replace('_', '-')}"
        if name == "options":
            words += [w for k, v in value.items() for w in ("--argument", f"{k}={v}")]
        elif isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-"))
        else:
            words += [option, str(value)]
    return ["train", *words, "--directory"]


def finish(process):
    process.join()
    assert process.exitcode == 0


@pytest.mark.slow
def test_the_command_is_killed_and_goes_on_bit_for_bit(fields, tmp_path):
    slow = {"resnet": 15, "skip_mlp": 20, "simple_cnn": 30}
    fields = fields | {"epochs": slow.get(fields.get("network"), 60), "measure_every": 20}
    words = train_words(fields)
    if "network" in fields:
        finish(child(command, *words, "whole"))
    else:
        script = Path(sys.executable).with_name("bnmlp")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        subprocess.run([script, *words, "whole"], env=environment, check=True, capture_output=True)
    for _ in range(2):
        process = child(command, *words, "killed")
        deadline = time.monotonic() + 60
        while read_status(tmp_path / "killed").get("process") != process.pid:
            assert time.monotonic() < deadline
            assert process.is_alive(), "the run ended before it was killed"
            time.sleep(0.01)
        process.kill()
        process.join()
    assert read_status(tmp_path / "killed")["state"] == "running"
    finish(child(command, *words, "killed"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    assert read_run(tmp_path / "killed") == TrainingRun(**fields)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train_goes_on_as_if_nothing_had_happened(fields, way, tmp_path):
    if WAYS[way].get("schedule") in ("critical", "equalised", "tilted"):
        if not TrainingRun(**fields).build().normalized():
            with pytest.raises(ValueError, match="no matrix of this network is normalised"):
                train(TrainingRun(**fields | WAYS[way]), tmp_path / "none", progress=False)
            return
    run = TrainingRun(**fields | WAYS[way])
    state = torch.random.get_rng_state()
    train(run, tmp_path / "whole", progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    interrupted(run, tmp_path / "stopped", 2)
    train(run, tmp_path / "stopped", progress=False)
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_network_trains_as_a_naive_loop_does(fields, tmp_path):
    fields = fields | {"dtype": "float64", "epochs": 1, "momentum": 0.5}
    if fields.get("network", "").startswith("mine"):
        (tmp_path / "mine.py").write_text(OWN.replace(", nn.Dropout(0.2)", ""))
    run = TrainingRun(**fields)
    rows = train(run, tmp_path / "run", progress=False)
    data, network = load_dataset("digits"), run.build()
    x, y = run.view(data.train_x[:300]).double(), data.train_y[:300]
    optimizer = torch.optim.SGD(network.parameters(), 0.02, 0.5)
    order = epoch_orders(0, run.replicas, 0, 300)
    losses = []
    for batch in order.split(50, 1):
        optimizer.zero_grad()
        logits = network(x[batch])
        each = torch.stack([F.cross_entropy(a, b) for a, b in zip(logits, y[batch], strict=True)])
        losses.append(each.detach())
        each.sum().backward()
        optimizer.step()
    np.testing.assert_allclose(rows["train_loss"], torch.stack(losses).mean(0), rtol=1e-9)
    test = run.view(data.test_x).double(), data.test_y
    found = evaluate(network, *test, "running", batch_size=50)
    np.testing.assert_allclose(rows["test_loss_running"], found.loss, rtol=1e-9)


def test_layers_rates_and_curvature_are_measured(fields, tmp_path):
    run = TrainingRun(**fields | {"rates_every": 2, "quantities": ("weights", "gradient"),
                                  "curvature_samples": 100})  # fmt: skip
    train(run, tmp_path / "run", progress=False)
    network = load_model(tmp_path / "run")
    matrices = network.weight_matrices()
    layers = read_layers(tmp_path / "run")
    count = len(matrices) - (run.network == "bnmlp")  # its table is of normalised layers
    assert len(layers) == 2 * count * run.replicas
    last = layers.loc[run.epochs]["weight_norm"].to_numpy().reshape(count, run.replicas)
    norms = [w.double().flatten(1).norm(dim=1).tolist() for w in list(matrices.values())[:count]]
    np.testing.assert_allclose(last, norms, rtol=1e-6)
    rates = read_rates(tmp_path / "run").reset_index()
    assert rates["step"].tolist() == sorted([*range(0, 18, 2)] * run.replicas)
    ratio = np.log(rates["largest"] / rates["smallest"])
    np.testing.assert_allclose(rates["spread"], ratio, rtol=1e-9)
    product = rates["critical_learning_rate"] ** 2 * rates["largest"] * rates["smallest"]
    np.testing.assert_allclose(product, 1, rtol=1e-9)
    found = read_curvature(tmp_path / "run").reset_index()
    assert set(found["replica"]) == set(range(run.replicas))
    assert found["value"].notna().all()
    assert read_status(tmp_path / "run")["unmeasured"] == []


def test_equalised_matrices_turn_by_one_angle(tmp_path):
    run = TrainingRun(**SMALL | NETWORKS["resnet"] | {"schedule": "equalised", "dtype": "float64",
                                                      "samples": 50, "epochs": 1})  # fmt: skip
    train(run, tmp_path, progress=False)
    before, after = run.build().weight_matrices(), load_model(tmp_path).weight_matrices()
    cosines = torch.stack([
        F.cosine_similarity(before[k].flatten(1), after[k].flatten(1))
        for k in run.build().normalized()
    ])  # fmt: skip
    angles = cosines.arccos()
    torch.testing.assert_close(angles, angles[:1].expand_as(angles), rtol=1e-3, atol=0)
    assert angles.min() > 1e-4


def test_stored_runs_of_before_are_runs_of_today():
    text = '{"name": "old", "depth": 7, "activation": "tanh", "optimizer": "adam"}'
    run = TrainingRun.model_validate_json(text)
    assert (run.network, run.depth, run.optimizer) == ("bnmlp", 7, "adam")
    again = TrainingRun(network="resnet", blocks=2)
    assert TrainingRun.model_validate_json(again.model_dump_json()) == again
    assert again.options["channels"] == 16, "defaults are written down"
    assert "activation" not in again.model_dump()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"network": "resnet", "depth": 5}, "resnet has no depth; it has .*blocks"),
        ({"network": "resnet", "blocks": 0}, "blocks: Input should be greater"),
        ({"network": "resnet", "attention": "shaped"}, "resnet has no attention; it has .*blocks"),
        ({"network": "nothing"}, "unknown network 'nothing'; use one of bnmlp, skip_mlp"),
        ({"network": "mine.py:build", "width": 3}, "has no width; give its arguments as options"),
        ({"options": {"blocks": 3}}, "options are for other networks"),
        ({"blocks": 3}, "blocks"),
        ({"optimizer": "adam", "schedule": "critical"}, "schedule critical is one of sgd"),
    ],
)
def test_fields_of_another_network_are_refused_in_words(given, words):
    with pytest.raises(ValueError, match=words):
        TrainingRun(**given)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("mine.py:bild", "no attribute 'bild'"),
        ("nowhere.py:build", "no file .*nowhere.py"),
        ("no.such.package:build", "ModuleNotFoundError"),
        ("mine.py:", "is not module:function"),
        ("math:sqrt", "math:sqrt failed: TypeError"),
        ("builtins:dict", "expected a module, got dict"),
        ("mine.py:of_three_classes", r"into \(2, 3\), expected logits of shape \(2, 10\)"),
        (
            "mine.py:of_images",
            r"fails with rows of shape \(2, 64\): .*; if it takes images, say in",
        ),
        ("mine.py:idle", "without parameters to train"),
    ],
)
def test_a_network_that_cannot_be_made_leaves_no_folder(factory, words, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        train(TrainingRun(**SMALL, network=factory), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_network_of_your_own_may_take_images(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    run = TrainingRun(**SMALL | {"network": "mine.py:of_images", "input": "images", "epochs": 1})
    rows = train(run, tmp_path / "run", progress=False)
    assert len(rows) == 2 and rows["train_loss"].notna().all()


def test_a_network_that_breaks_stops_alone(tmp_path):
    run = TrainingRun(**SMALL | NETWORKS["simple_cnn"] | {"learning_rate": 1e30})
    train(run, tmp_path, progress=False)
    status = read_status(tmp_path)
    assert status["state"] == "done"
    assert all("not finite" in why for why in status["stopped"])
    assert len(read_metrics(tmp_path)) == 0 or math.isnan(read_metrics(tmp_path)["train_loss"][0])
