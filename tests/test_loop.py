"""Runs that are killed, refused, starved of disk, and compared with plain PyTorch."""

import contextlib
import math
import os
import random
import resource
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from children import child

from bnmlp import (
    TrainingRun,
    gradient_norms,
    load_dataset,
    load_model,
    read_layers,
    read_metrics,
    train,
)
from bnmlp.data.batches import epoch_orders
from bnmlp.layers.seeds import random_source
from bnmlp.machine.storage import StorageError
from bnmlp.measurements.isometry import isometry_gap
from bnmlp.networks.plain import PlainNetwork
from bnmlp.training import read_curvature, read_run, read_status
from bnmlp.training.loop import improves

SMALL = {
    "dataset": "digits", "depth": 6, "width": 20, "batch_size": 50, "replicas": 2,
    "learning_rate": 0.05, "epochs": 4, "calibration_samples": 200,
}  # fmt: skip


def small(**fields):
    return TrainingRun(**{**SMALL, **fields})


def assert_equal_runs(one, two):
    pd.testing.assert_frame_equal(read_metrics(one), read_metrics(two), check_exact=True)
    pd.testing.assert_frame_equal(read_layers(one), read_layers(two), check_exact=True)
    states = [load_model(folder).state_dict() for folder in (one, two)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def train_in_child(fields, folder):
    train(TrainingRun(**fields), folder, progress=False)


def test_variants_side_by_side_train_as_they_do_alone(tmp_path):
    fields = {"dtype": "float64", "epochs": 2, "activation": ("identity", "tanh", "sin")}
    both = train(small(**fields, gain_exponent=(0.0, 0.4, 0.3)), tmp_path / "all", progress=False)
    assert len(both) == 2 * 6
    for v, (activation, exponent) in enumerate([("identity", 0.0), ("tanh", 0.4), ("sin", 0.3)]):
        alone = train(
            small(**fields | {"activation": activation, "gain_exponent": exponent}),
            tmp_path / activation, progress=False,
        )  # fmt: skip
        own = both[both["activation"] == activation]
        assert set(own["replica"]) == {2 * v, 2 * v + 1}
        assert set(own["gain_exponent"]) == {exponent}
        for column in ("train_loss", "test_loss_batch", "test_loss_running"):
            np.testing.assert_allclose(own[column], alone[column], rtol=1e-9)
    start = small(**fields).build().hidden_weight
    assert torch.equal(start[:, :2], start[:, 4:])
    assert load_model(tmp_path / "all").replicas == 6


def test_quantities_of_the_loss_are_stored_with_the_run(tmp_path):
    asked = {"quantities": ("hessian", "weights", "loss"), "curvature_samples": 150}
    table = train(small(depth=2, measure_every=2, **asked), tmp_path / "a", progress=False)
    found = read_curvature(tmp_path / "a").reset_index()
    assert sorted(found["epoch"].unique()) == [0, 2, 4]
    assert sorted(found["replica"].unique()) == [0, 1]
    values = found.set_index(["epoch", "replica", "quantity", "index"])["value"]
    assert len(values[4, 1]["hessian_largest"]) == 5
    assert values[0, 0, "distance_from_start", 1] == 0
    assert values[4, 0, "distance_from_start", 1] > values[2, 0, "distance_from_start", 1] > 0
    assert values[4, 0, "loss", 1] < values[0, 0, "loss", 1]
    without = train(small(depth=2, measure_every=2), tmp_path / "b", progress=False)
    pd.testing.assert_frame_equal(table, without, check_exact=True)


@pytest.mark.slow
def test_a_run_killed_ten_times_is_bit_for_bit_the_uninterrupted_one(tmp_path):
    run = TrainingRun(
        dataset="mnist5k", samples=400, depth=100, replicas=2, learning_rate=0.01, epochs=20,
        measure_every=15, calibration_samples=300,
    )  # fmt: skip

    def start(folder):
        return child(train_in_child, run.model_dump(), folder)

    warm_up = start(tmp_path / "warm-up")  # imports
    time.sleep(2)
    warm_up.kill()
    warm_up.join()
    begin = time.monotonic()
    whole = start(tmp_path / "whole")
    whole.join()
    duration = time.monotonic() - begin
    assert whole.exitcode == 0
    moments = random.Random(0)
    epochs = []
    for kill in range(10):
        process = start(tmp_path / "killed")
        if kill % 2:  # at any moment, the start of the process included
            time.sleep(duration * moments.uniform(0.0, 0.1))
        else:  # within an epoch after the first checkpoint of this process
            while process.is_alive() and last_writer(tmp_path / "killed") != process.pid:
                time.sleep(0.01)
            time.sleep(duration / run.epochs * moments.random())
        process.kill()
        process.join()
        assert process.exitcode == -9, "the run ended before it was killed ten times"
        epochs.append(read_status(tmp_path / "killed")["epoch"])
    assert epochs == sorted(epochs)
    assert 4 <= epochs[-1] < run.epochs, epochs  # five were killed after a first checkpoint
    last = start(tmp_path / "killed")
    last.join()
    assert last.exitcode == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    assert read_metrics(tmp_path / "killed")["epoch"].tolist() == sorted([*range(1, 21)] * 2)


def last_writer(folder):
    return read_status(folder).get("process")


class Killed(Exception):
    pass


def interrupted(run, folder, epochs):
    """Train until so many epochs are over, then stop as if killed."""
    seen = []

    def stop(line):
        seen.append(line)
        if len(seen) == epochs:
            raise Killed

    with pytest.raises(Killed):
        train(run, folder, progress=stop)


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "adam", "learning_rate": 0.01, "schedule": "cosine", "warmup_steps": 30},
        {"momentum": 0.9, "weight_decay": 1e-3, "affine": True, "bias": True},
        {"norm": "layer", "activation": "relu"},
        {"save_best": True, "patience": 1, "epochs": 8, "learning_rate": 0.3},
        {"dtype": "float64", "center": False, "unit_norm": True, "eps": 0.0},
    ],
)
def test_every_kind_of_run_goes_on_as_if_nothing_had_happened(fields, tmp_path):
    run = small(**fields)
    train(run, tmp_path / "whole")
    interrupted(run, tmp_path / "stopped", 2)
    assert read_status(tmp_path / "stopped")["state"] == "running"
    train(run, tmp_path / "stopped")
    assert read_status(tmp_path / "stopped")["state"] == "done"
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def test_losses_and_averages_are_those_of_plain_pytorch(tmp_path):
    run = small(dtype="float64", depth=10, epochs=2, activation="tanh", evaluate_every=1)
    metrics = train(run, tmp_path)
    data, start, end = load_dataset("digits"), run.build(), load_model(tmp_path)
    x, y = data.train_x.double(), data.train_y
    n, steps = run.batch_size, len(x) // run.batch_size
    assert 2 * steps >= 50
    for r in range(run.replicas):
        plain = PlainNetwork(start, r)
        optimiser = torch.optim.SGD(plain.parameters(), lr=run.learning_rate)
        losses, accuracies = [], []
        for epoch in range(run.epochs):
            order = epoch_orders(run.seed, run.replicas, epoch, len(x))[r]
            for batch in order.split(n)[:steps]:
                optimiser.zero_grad()
                logits = plain(x[batch])
                loss = F.cross_entropy(logits, y[batch])
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
                accuracies.append((logits.argmax(-1) == y[batch]).double().mean().item())
        rows = metrics[metrics["replica"] == r]
        np.testing.assert_allclose(rows["train_loss"], losses, rtol=1e-9)
        np.testing.assert_allclose(rows["train_accuracy"], accuracies, rtol=1e-12)
        for layer, norm in enumerate(plain.norms):
            torch.testing.assert_close(
                end.running_var[layer, r], norm.running_var, rtol=1e-9, atol=0
            )
        found = plain.eval()(data.test_x.double())
        loss = F.cross_entropy(found, data.test_y).item()
        assert rows["test_loss_running"].iloc[-1] == pytest.approx(loss, rel=1e-9)


def test_a_finished_run_is_read_not_repeated_and_another_is_refused(tmp_path):
    run = small()
    first = train(run, tmp_path)
    changed = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    pd.testing.assert_frame_equal(train(run, tmp_path), first, check_exact=True)
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == changed
    for other in (small(epochs=5), small(gain=0.5)):
        with pytest.raises(ValueError, match=r"epochs: 4 -> 5|gain: 1.0 -> 0.5"):
            train(other, tmp_path)
    interrupted(run, tmp_path / "half", 2)
    with pytest.raises(ValueError, match="width: 20 -> 30"):
        train(small(width=30), tmp_path / "half")
    pd.testing.assert_frame_equal(train(run, tmp_path / "half"), first, check_exact=True)


def test_a_full_disk_loses_nothing(tmp_path):
    run = small()
    train(run, tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        lines = []

        def fill_the_disk(line):
            lines.append(line)
            if len(lines) == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

        with pytest.raises(StorageError, match=r"cannot write .*checkpoint\.pt.*make room"):
            train(run, tmp_path / "full", progress=fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_status(tmp_path / "full")["epoch"] == 2
    assert not list((tmp_path / "full").glob(".*.new"))
    train(run, tmp_path / "full")
    assert_equal_runs(tmp_path / "whole", tmp_path / "full")


def test_a_damaged_checkpoint_is_named_and_kept(tmp_path):
    run = small()
    interrupted(run, tmp_path, 2)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"checkpoint\.pt is truncated or no checkpoint"):
            train(run, tmp_path)
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    train(run, tmp_path)


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot use .*file"):
        train(small(), tmp_path / "file" / "run")
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        load_model_of_nothing(tmp_path)
    interrupted(small(), tmp_path / "run", 1)
    with pytest.raises(FileNotFoundError, match="train with save_best"):
        load_model(tmp_path / "run", best=True)


def load_model_of_nothing(folder):
    (folder / "checkpoint.pt").write_bytes(b"")
    load_model(folder)


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    def meddle(line):
        with pytest.raises(StorageError, match="another process trains in"):
            train(small(), tmp_path)

    train(small(epochs=1), tmp_path, progress=meddle)


def test_a_network_that_diverges_stops_alone(tmp_path):
    calm = train(small(norm="none", init_gain=1.2, gain=1.0, gain_exponent=0.0, depth=3,
                       activation="relu", learning_rate=0.1), tmp_path / "calm")  # fmt: skip
    run = small(norm="none", init_gain=1.2, gain_exponent=0.0, depth=3, activation="relu",
                learning_rate=0.1)  # fmt: skip
    folder = tmp_path / "wild"
    broken = {}

    def break_one(line):
        broken.setdefault("lines", []).append(line)
        if len(broken["lines"]) == 2:
            raise Killed

    with contextlib.suppress(Killed):
        train(run, folder, progress=break_one)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["model"]["input_weight"][1] = torch.nan  # as an overflow would leave it
    torch.save(state, folder / "checkpoint.pt")
    metrics = train(run, folder)
    pd.testing.assert_frame_equal(
        metrics[metrics["replica"] == 0].reset_index(drop=True),
        calm[calm["replica"] == 0].reset_index(drop=True),
        check_exact=True,
    )
    assert metrics[metrics["replica"] == 1]["epoch"].max() == 2
    assert not metrics.isna().any().any()
    stopped = read_status(folder)["stopped"]
    assert stopped[0] == ""
    assert stopped[1].startswith("loss not finite at step ")
    assert read_layers(folder).loc[4].index.unique("replica").tolist() == [0]


@pytest.mark.parametrize(
    ("value", "best", "metric", "better"),
    [
        (0.9, 0.8, "test_accuracy_batch", True),
        (0.8, 0.9, "test_accuracy_batch", False),
        (0.8, 0.9, "train_loss", True),
        (0.9, 0.9, "train_loss", False),
        (math.inf, math.nan, "train_loss", True),
        (0.1, math.nan, "test_accuracy_batch", True),
        (math.nan, 0.9, "train_loss", False),
        (math.nan, 0.9, "test_accuracy_batch", False),
        (math.nan, math.nan, "train_loss", False),
    ],
)
def test_nan_improves_nothing_and_anything_improves_nan(value, best, metric, better):
    assert improves(value, best, metric) is better


@pytest.mark.parametrize("metric", ["test_loss_running", "test_accuracy_running"])
def test_an_evaluation_that_is_nan_neither_becomes_the_best_nor_meets_a_target(metric, tmp_path):
    run = small(save_best=True, patience=1, metric=metric, target=0.0 if "loss" in metric else 1.0)
    interrupted(run, tmp_path, 2)
    best = load_model(tmp_path, best=True)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["model"]["running_var"].fill_(torch.nan)  # for evaluation only; training goes on
    if "accuracy" in metric:
        state["best"].zero_()  # below chance, which logits that are nan reach
    torch.save(state, tmp_path / "checkpoint.pt")
    metrics = train(run, tmp_path)
    last = metrics[metrics["epoch"] == 3]
    assert last["test_loss_running"].isna().all()
    assert (last["test_accuracy_running"] > 0).all()
    assert np.isfinite(last["train_loss"]).all()
    for name, value in load_model(tmp_path, best=True).state_dict().items():
        assert torch.equal(value, best.state_dict()[name]), name
    assert read_status(tmp_path)["stopped"] == [f"no better {metric} since epoch 2"] * 2


EXPLODING = {
    "norm": "none", "activation": "relu", "gain_exponent": 0.0, "init": "gaussian", "depth": 60,
}  # fmt: skip


def test_networks_that_stop_before_the_first_evaluation_leave_a_table_without_rows(tmp_path):
    run = small(**EXPLODING, learning_rate=1e30)
    table = train(run, tmp_path)
    assert len(table) == 0
    assert {"epoch", "step", "replica", "train_loss", "test_accuracy_batch"} <= set(table.columns)
    status = read_status(tmp_path)
    assert status["state"] == "done"
    assert all("loss not finite at step" in why for why in status["stopped"])
    pd.testing.assert_frame_equal(train(run, tmp_path), table)


def test_gradients_beyond_float32_are_measured_in_float64(tmp_path):
    run = small(**EXPLODING, init_gain=6.0, epochs=1)
    train(run, tmp_path)
    assert read_status(tmp_path)["state"] == "done"
    data, order = load_dataset("digits"), torch.randperm(1442, generator=random_source(1))
    batch = order[: run.batch_size]
    with pytest.raises(ValueError, match="norms are not finite"):
        gradient_norms(run.build(), data.train_x[batch], data.train_y[batch])
    expected = gradient_norms(
        run.build().double(), data.train_x[batch].double(), data.train_y[batch]
    )[:-1]
    assert expected.min() > 1e37
    found = read_layers(tmp_path).loc[0]["gradient_norm"].to_numpy()
    np.testing.assert_allclose(found, expected.flatten(), rtol=1e-9)


def test_a_measurement_without_a_value_is_nan_with_the_reason_and_the_run_goes_on(tmp_path):
    asked = {"quantities": ("covariance", "weights"), "curvature_samples": 100}
    run = small(**EXPLODING | {"depth": 6}, init_gain=1e9, epochs=1, **asked)
    train(run, tmp_path)
    status = read_status(tmp_path)
    assert status["state"] == "done"
    layers = read_layers(tmp_path).loc[0]
    finite = layers["linear_gap"].notna().groupby("layer").all()
    assert finite.loc[:4].all() and not finite.loc[5:].any(), finite
    assert layers["weight_gap"].notna().all()
    notes = status["unmeasured"]
    assert "linear_gap of network 1 at epoch 0: not finite from layer 5 on" in notes
    values = read_curvature(tmp_path).loc[0, 1].set_index("quantity")["value"]
    assert math.isnan(values["covariance"])
    assert any(note.startswith("covariance of network 1 at epoch 0: ") for note in notes)
    weights = torch.cat([p[1] if p.ndim == 3 else p[:, 1].flatten(0, 1) for p in parts(run)])
    assert values["weight_norm"] == pytest.approx(weights.double().norm().item(), rel=1e-6)
    assert values["distance_from_start"] == 0


def parts(run):
    """The weights of all layers as matrices of 20 columns, replica first or second."""
    model = run.build()
    columns = run.width
    first = model.input_weight.detach().flatten(1).unflatten(1, (-1, columns))
    return first, model.hidden_weight.detach(), model.output_weight.detach()


def test_a_loss_without_curvature_does_not_end_the_run(tmp_path):
    asked = {"quantities": ("hessian", "loss"), "curvature_samples": 100}
    run = small(norm="none", activation="tanh", init_gain=1e-30, epochs=1, **asked)
    train(run, tmp_path)
    assert read_status(tmp_path)["state"] == "done"
    values = read_curvature(tmp_path).loc[0, 0].set_index("quantity")["value"]
    assert values["loss"] == pytest.approx(math.log(10), rel=1e-6)
    hessian = values[values.index.str.startswith("hessian")]
    assert len(hessian) and not (hessian.abs() > 0).any(), hessian


def test_a_network_that_breaks_at_the_last_step_is_told(tmp_path):
    run = small(epochs=1)
    interrupted(run, tmp_path, 1)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["model"]["hidden_weight"][3, 1, 0, 0] = torch.inf
    torch.save(state, tmp_path / "checkpoint.pt")
    train(run, tmp_path)
    status = read_status(tmp_path)
    assert status["state"] == "done"
    assert status["unmeasured"] == ["layers of network 1 at epoch 1: weights are not finite"]


def test_stop_rules_keep_the_network_as_it_was(tmp_path):
    free = train(small(epochs=6), tmp_path / "free")
    accuracy = free[free["replica"] == 0]["test_accuracy_batch"]
    target = float(accuracy.iloc[2])
    stopped = train(small(epochs=6, target=target), tmp_path / "target")
    rows = stopped[stopped["replica"] == 0]
    first = int((accuracy >= target).argmax())
    assert len(rows) == first + 1
    assert "test_accuracy_batch reached" in read_status(tmp_path / "target")["stopped"][0]
    shorter = train(small(epochs=first + 1), tmp_path / "short")
    assert shorter[shorter["replica"] == 0]["train_loss"].tolist() == rows["train_loss"].tolist()
    kept, expected = load_model(tmp_path / "target"), load_model(tmp_path / "short")
    assert torch.equal(kept.hidden_weight[:, 0], expected.hidden_weight[:, 0])
    assert torch.equal(kept.running_var[:, 0], expected.running_var[:, 0])

    train(small(max_loss=0.1), tmp_path / "loss")
    assert read_status(tmp_path / "loss")["epoch"] == 1
    frozen = train(small(learning_rate=0.0, patience=2, epochs=9), tmp_path / "patience")
    assert frozen["epoch"].max() <= 5
    assert (
        "no better test_accuracy_batch since epoch"
        in (read_status(tmp_path / "patience")["stopped"][0])
    )


def test_best_weights_are_those_of_the_best_row(tmp_path):
    run = small(save_best=True, epochs=6, learning_rate=0.5)
    metrics = train(run, tmp_path / "run")
    best = load_model(tmp_path / "run", best=True)
    for r in range(run.replicas):
        rows = metrics[metrics["replica"] == r]
        epoch = int(rows.loc[rows["test_accuracy_batch"].idxmax(), "epoch"])
        train(small(epochs=epoch, learning_rate=0.5), tmp_path / f"to-{epoch}")
        expected = load_model(tmp_path / f"to-{epoch}")
        assert torch.equal(best.hidden_weight[:, r], expected.hidden_weight[:, r])


def test_layers_are_measured_when_asked(tmp_path):
    train(small(measure_every=2, epochs=5), tmp_path)
    layers = read_layers(tmp_path)
    assert layers.index.unique("epoch").tolist() == [0, 2, 4, 5]
    assert layers.index.unique("layer").tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(layers.to_numpy()).all()
    assert (layers.loc[0, "weight_gap"] < 1e-10).all()
    model = load_model(tmp_path)
    expected = isometry_gap(model.hidden_weight)[:, 1]
    found = layers.loc[5].xs(1, level="replica")["weight_gap"].iloc[1:]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_networks_do_not_depend_on_their_company(tmp_path):
    alone = train(small(replicas=1), tmp_path / "one")
    company = train(small(replicas=3), tmp_path / "three")
    rows = company[company["replica"] == 0]["train_loss"]
    np.testing.assert_allclose(rows, alone["train_loss"], rtol=1e-5)
    losses = company[company["epoch"] == 1]["train_loss"]
    assert losses.nunique() == 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depth", 0, "greater than or equal to 1"),
        ("learning_rate", float("nan"), "finite"),
        ("learning_rate", -1.0, "greater than or equal to 0"),
        ("dataset", "imagenet", "mnist5k"),
        ("activation", "tahn", "'tanh'"),
        ("name", "../elsewhere", "pattern"),
        ("name", "/elsewhere", "pattern"),
        ("name", "a/b", "pattern"),
        ("name", "a\\b", "pattern"),
        ("name", "", "pattern"),
        ("name", "a\n", "pattern"),
        ("name", ".", "cannot name a folder"),
        ("name", "..", "cannot name a folder"),
        ("name", "NUL", "cannot name a folder"),
        ("name", "com1.txt", "cannot name a folder"),
        ("epoch", 3, "Extra inputs"),
        ("batch_size", 1, "greater than or equal to 2"),
        ("quantities", ("jerk",), "'hessian'"),
        ("activation", (), "one entry for each variant"),
    ],
)
def test_a_field_out_of_range_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        small(**{field: value})


def test_a_run_goes_through_json_unchanged():
    run = small(target=0.9, schedule="cosine", gain=1 / 3)
    assert TrainingRun.model_validate_json(run.model_dump_json()) == run


def test_too_few_samples_for_a_batch_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="30 training samples make no batch of 50"):
        train(small(samples=30), tmp_path / "run")
    with pytest.raises(ValueError, match="at least two batches, 100, got 60"):
        small(quantities=("loss",), curvature_samples=60)
    with pytest.raises(ValueError, match="too few for quantities"):
        train(small(samples=80, quantities=("loss",)), tmp_path / "small")
    with pytest.raises(FileNotFoundError, match="bnmlp data get cifar100"):
        train(small(dataset="cifar100"), tmp_path / "other", root=tmp_path)
    assert not (tmp_path / "other").exists()


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_run_with_a_name_beyond_ascii_goes_on_in_a_locale_of_ascii(tmp_path):
    run = small(name="größe")
    interrupted(run, tmp_path, 2)
    command("train", "--config", tmp_path / "run.json", "--directory", tmp_path, **ASCII)
    assert read_status(tmp_path)["state"] == "done"
    assert read_run(tmp_path) == run
    assert "größe" in command("status", tmp_path, PYTHONIOENCODING="utf-8")
    assert "gr\\xf6\\xdfe" in command("status", tmp_path, PYTHONIOENCODING="iso-8859-7")


def command(*arguments, **environment):
    """What the command prints, as UTF-8."""
    program = [sys.executable, "-c", "from bnmlp.cli import main; main()"]
    ended = subprocess.run(
        [*program, *map(str, arguments)],
        env=os.environ | environment, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    run = small(epochs=1)
    first = train(run, tmp_path)
    for name in ("run.json", "status.json", "metrics.csv"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    pd.testing.assert_frame_equal(train(run, tmp_path), first)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("status.json", b"[1]", "not an object but a list"),
        ("status.json", b'{"state": "done"}', "without epoch, seconds, stopped"),
        ("status.json", b"[" * 100_000, "recursion"),
        ("status.json", b"\xff", "decode"),
        ("run.json", b"[1]", "Input should be an object"),
        ("run.json", b'{"depth": "deep"}', "depth: Input should be a valid integer"),
        ("run.json", b"\xff", "decode"),
        ("metrics.csv", b"", "No columns"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(name, content, message, tmp_path):
    run = small(epochs=1)
    train(run, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StorageError, match=rf"{name} is damaged \(.*{message}"):
        train(run, tmp_path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    interrupted(small(), tmp_path, 2)
    for other in ([1, 2], {"weights": torch.zeros(2)}):
        torch.save(other, tmp_path / "checkpoint.pt")
        with pytest.raises(StorageError, match="no checkpoint .*a file without model"):
            train(small(), tmp_path)
        with pytest.raises(StorageError, match="no checkpoint .*a file without model"):
            load_model(tmp_path)
    assert read_run(tmp_path) == small()


def test_every_module_works_without_docstrings(tmp_path):
    program = """
import importlib, pkgutil, bnmlp
for module in pkgutil.iter_modules(bnmlp.__path__):
    importlib.import_module(f"bnmlp.{module.name}")
from bnmlp.cli import main
main()
"""
    options = {"dataset": "digits", "depth": 3, "width": 10, "epochs": 1, "directory": tmp_path}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    ended = subprocess.run(
        [sys.executable, "-OO", "-c", program, "train", *arguments], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert read_status(tmp_path)["state"] == "done"
