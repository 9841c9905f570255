"""Many runs: over processes, over a Dask cluster that loses a worker, and by the command."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from bnmlp import TrainingRun, gather, read_runs, train, train_all
from bnmlp.cli import app
from bnmlp.training import load_model, read_metrics, read_status
from bnmlp.training.networks import NETWORKS
from bnmlp.training.sweep import SweepError

FIELDS = {
    "dataset": "digits", "depth": 5, "width": 20, "batch_size": 50, "learning_rate": 0.05,
    "epochs": 2, "calibration_samples": 200,
}  # fmt: skip


def runs(count, **fields):
    return [
        TrainingRun(**{**FIELDS, "name": f"run-{i}", "seed": i, **fields}) for i in range(count)
    ]


def test_networks_of_one_run_that_differ_are_gathered_with_their_own_fields(tmp_path):
    options = {"width": 6, "depth": 2, "epochs": 1, "samples": 200}
    mixed = TrainingRun(name="mixed", activation=("identity", "tanh"), gain_exponent=(0.0, 0.4),
                        **options)  # fmt: skip
    for run in (mixed, TrainingRun(name="plain", activation="relu", **options)):
        train(run, tmp_path / run.name, progress=False)
    table = gather(tmp_path, ["activation", "depth"])
    assert list(table)[:3] == ["name", "activation", "depth"]
    found = table.groupby("name")["activation"].unique().map(set).to_dict()
    assert found == {"mixed": {"identity", "tanh"}, "plain": {"relu"}}


def test_runs_of_a_file_share_its_defaults(tmp_path):
    path = tmp_path / "runs.json"
    entries = [{"name": "a"}, {"name": "b", "depth": 7}]
    path.write_text(json.dumps({"defaults": FIELDS, "runs": entries}))
    assert [run.depth for run in read_runs(path)] == [5, 7]
    path.write_text(json.dumps([{**FIELDS, **e} for e in entries]))
    assert [run.name for run in read_runs(path)] == ["a", "b"]
    for content, message in (
        ("{", "is no JSON"),
        ('{"run": []}', "expected a list of runs"),
        ('[{"name": "a"}, {"name": "a"}]', "these do not: a"),
        ('[{"deepness": 3}]', "deepness"),
        ('{"defaults": [1], "runs": []}', "expected a list of runs"),
        ('{"runs": {"a": 1}}', "expected a list of runs"),
        ("[3]", "expected a list of runs"),
        ('"runs"', "expected a list of runs"),
        ("[" * 100_000, "is no JSON"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_runs(path)
    path.write_text(json.dumps([{"name": "größe"}], ensure_ascii=False), encoding="utf-8-sig")
    assert read_runs(path)[0].name == "größe"
    path.write_text("[]", encoding="utf-16")
    with pytest.raises(ValueError, match="is no JSON in UTF-8"):
        read_runs(path)


def test_a_sweep_is_taken_up_where_it_stopped_and_gathered_into_one_table(tmp_path):
    first = train_all(runs(2), tmp_path)
    made = (tmp_path / "run-0" / "checkpoint.pt").stat().st_mtime_ns
    lines = []
    table = train_all(runs(3), tmp_path, progress=lines.append)
    assert (tmp_path / "run-0" / "checkpoint.pt").stat().st_mtime_ns == made
    assert table["name"].unique().tolist() == ["run-0", "run-1", "run-2"]
    assert table.columns[:2].tolist() == ["name", "seed"]
    pd.testing.assert_frame_equal(table[: len(first)], first)
    assert sum(": done after 2 epochs" in line for line in lines) == 3
    faster = TrainingRun(**{**FIELDS, "name": "faster", "learning_rate": 0.1, "schedule": "cosine"})
    table = train_all([faster], tmp_path).set_index("name")
    assert table.loc["faster", "learning_rate"].tolist() == [0.1, 0.1]
    # The rates of the last steps of two epochs, neither the first nor the one after the end.
    assert table.loc["faster", "current_learning_rate"].between(0, 0.1, inclusive="neither").all()
    chosen = gather(tmp_path, ["depth", "seed"])
    assert chosen.columns[:3].tolist() == ["name", "depth", "seed"], "also where they are the same"
    assert set(chosen["depth"]) == {FIELDS["depth"]}
    with pytest.raises(FileNotFoundError, match="no run in"):
        gather(tmp_path / "elsewhere")


def test_a_failing_run_does_not_stop_the_others(tmp_path):
    wrong = TrainingRun(**{**FIELDS, "name": "wrong", "samples": 10})
    for executor in (None, ThreadPoolExecutor(1)):
        folder = tmp_path / str(executor is None)
        with pytest.raises(SweepError, match="1 of 3 runs failed: wrong: 10 training samples"):
            train_all([wrong, *runs(2)], folder, executor=executor)
        assert [read_status(folder / f"run-{i}")["state"] for i in range(2)] == ["done"] * 2


@contextmanager
def everywhere(kind):
    """Arguments of train_all for each way to train."""
    if kind == "here":
        yield {}
    elif kind == "threads":
        with ThreadPoolExecutor(2) as executor:
            yield {"executor": executor}
    elif kind == "processes":
        yield {"jobs": 2}
    else:
        distributed = pytest.importorskip("distributed")
        with (
            distributed.LocalCluster(
                n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0"
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield {"executor": client.get_executor(pure=False)}


@pytest.mark.parametrize(
    "kind",
    [
        "here",
        "threads",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("processes", "cluster")),
    ],
)
def test_whatever_a_run_raises_fails_that_run_alone(kind, tmp_path):
    huge = TrainingRun(**FIELDS | {"name": "huge", "width": 10**5, "depth": 10**5})
    wrong = TrainingRun(**FIELDS, name="wrong")
    wild = {"norm": "none", "activation": "relu", "gain_exponent": 0.0, "learning_rate": 1e30}
    wild = TrainingRun(**FIELDS | wild | {"name": "wild", "depth": 30})
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "layers").write_text("")
    lines = []
    with everywhere(kind) as way, pytest.raises(SweepError) as failed:
        train_all([huge, wrong, wild, *runs(1)], tmp_path, progress=lines.append, **way)
    assert str(failed.value).startswith("2 of 4 runs failed: ")
    assert "huge: MemoryError" in str(failed.value) or "huge: _ArrayMemory" in str(failed.value)
    assert f"wrong: cannot use {tmp_path / 'wrong'}" in str(failed.value)
    assert [read_status(tmp_path / name)["state"] for name in ("wild", "run-0")] == ["done"] * 2
    ended = [line for line in lines if "done after" in line]
    assert sorted(line.split(":")[0] for line in ended) == ["run-0", "wild"]
    assert any("1 of 1 networks stopped early" in line for line in ended)
    assert set(gather(tmp_path)["name"]) == {"run-0"}, "only one run came to an evaluation"


@pytest.mark.slow
def test_a_worker_process_that_is_killed_fails_its_run_alone(tmp_path):
    long = TrainingRun(**FIELDS | {"name": "long", "epochs": 100_000})
    with ThreadPoolExecutor(1) as background:
        sweep = background.submit(train_all, [long, *runs(3)], tmp_path, jobs=2)
        assert kill_a_worker_in_the_middle(None, tmp_path, [long])
        with pytest.raises(SweepError, match="1 of 4 runs failed: long: a worker process died"):
            sweep.result(timeout=300)
    assert [read_status(tmp_path / f"run-{i}")["state"] for i in range(3)] == ["done"] * 3
    assert read_status(tmp_path / "long")["state"] == "running"


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from bnmlp import TrainingRun, train_all\n"
        f"train_all([TrainingRun(**{FIELDS!r})], {str(tmp_path / 'out')!r}, jobs=2)\n"
    )
    told = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert told.returncode == 1
    last = told.stderr.strip().splitlines()[-1]
    assert last.startswith("bnmlp.training.sweep.SweepError: no run was started: ")
    assert 'under `if __name__ == "__main__":`' in last
    assert "killed" not in told.stderr


@pytest.mark.slow
def test_processes_give_the_numbers_of_one(tmp_path):
    expected = train_all(runs(3), tmp_path / "one")
    found = train_all(runs(3), tmp_path / "two", jobs=2)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_loses_nothing(tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"depth": 60, "epochs": 12, "replicas": 2, "learning_rate": 0.01}
    several = runs(3, **options)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
        ThreadPoolExecutor(1) as background,
    ):
        executor = client.get_executor(pure=False)
        sweep = background.submit(train_all, several, tmp_path / "cluster", executor=executor)
        killed = kill_a_worker_in_the_middle(client, tmp_path / "cluster", several)
        table = sweep.result(timeout=300)
    assert killed, "all runs ended before a worker could be killed in one"
    assert killed != read_status(tmp_path / "cluster" / "run-0")["process"]
    assert table.groupby("name").size().tolist() == [24] * 3
    # On the killed worker's run: bit for bit what an undisturbed worker makes of it, as one thread.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(several[0], tmp_path / "alone")
    finally:
        torch.set_num_threads(threads)
    pd.testing.assert_frame_equal(
        read_metrics(tmp_path / "alone"),
        read_metrics(tmp_path / "cluster" / "run-0"),
        check_exact=True,
    )
    assert load_model(tmp_path / "alone").hidden_weight.equal(
        load_model(tmp_path / "cluster" / "run-0").hidden_weight
    )


def kill_a_worker_in_the_middle(client, folder, several):
    """Kill the process that trains the first run once it has saved some epochs."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        status = read_status(folder / several[0].name)
        if status.get("state") == "running" and status["epoch"] >= 2:
            os.kill(status["process"], signal.SIGKILL)
            return status["process"]
        if status.get("state") == "done":
            break
        time.sleep(0.02)
    return None


def bnmlp(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def test_the_command_trains_goes_on_and_shows(tmp_path):
    folder = tmp_path / "run"
    options = [
        part for name, value in FIELDS.items() for part in (f"--{name.replace('_', '-')}", value)
    ]
    result = bnmlp("train", "--directory", folder, *options, "--no-center")
    assert "results in" in result.output
    assert "epoch 2/2: train loss" in result.stderr
    assert train(TrainingRun(**FIELDS, center=False), folder) is not None
    assert "done" in bnmlp("status", folder).output
    refused = bnmlp("train", "--directory", folder, *options, code=1)
    assert "center: False -> True" in refused.stderr
    other = tmp_path / "other"
    bnmlp("train", "--config", folder / "run.json", "--directory", other, "--epochs", 1)
    assert len(read_metrics(other)) == 1


def test_the_command_has_an_option_for_every_field():
    text = bnmlp("train", "--help").output
    fields = {k: f for k, f in TrainingRun.model_fields.items() if k != "options"}
    for kind in NETWORKS.values():
        fields |= kind.model_fields
    for name, field in fields.items():
        assert f"--{name.replace('_', '-')} " in text.replace("\n", " "), name
        assert field.description.split()[0] in text
    assert "--argument " in text, "options of a network of one's own"


def test_the_command_runs_files_and_reports_failures(tmp_path):
    path = tmp_path / "runs.json"
    entries = [{"name": "good"}, {"name": "bad", "samples": 3}]
    path.write_text(json.dumps({"defaults": FIELDS, "runs": entries}))
    result = bnmlp("run", path, tmp_path / "out", code=1)
    assert "1 of 2 runs failed: bad: 3 training samples" in result.stderr
    shown = bnmlp("status", tmp_path / "out").output
    assert "good" in shown
    assert "begun" in shown
    assert "no run in" in bnmlp("status", tmp_path, code=1).stderr


def test_a_network_that_stops_before_an_evaluation_is_shown(tmp_path):
    wild = {"norm": "none", "activation": "relu", "gain_exponent": 0.0, "learning_rate": 1e30}
    fields = FIELDS | wild | {"depth": 30, "name": "wild"}
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({"runs": [fields, {**FIELDS, "name": "calm"}]}))
    shown = bnmlp("run", path, tmp_path / "out")
    assert "wild: done after" in shown.stderr
    assert "calm: done after" in shown.stderr
    rows = bnmlp("status", tmp_path / "out").output.splitlines()
    assert [row.split()[1] for row in rows[1:]] == ["done", "done"]
    path.write_text(json.dumps(fields))
    shown = bnmlp("train", "--config", path, "--directory", tmp_path / "one").output
    assert "network 0 stopped: loss not finite at step" in shown
    assert len(gather(tmp_path / "one")) == 0


def test_a_damaged_folder_is_shown_beside_the_others(tmp_path):
    train_all(runs(2), tmp_path)
    (tmp_path / "run-1" / "status.json").write_text("[1]")
    rows = bnmlp("status", tmp_path).output.splitlines()
    assert rows[1].split()[:2] == ["run-0", "done"]
    assert "status.json is damaged" in rows[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("BNMLP_DEVICE", "cuda")
    told = bnmlp("train", "--directory", tmp_path / "run", "--dataset", "digits", code=1)
    expected = "bnmlp: BNMLP_DEVICE is cuda, but PyTorch finds none here; set it to auto\n"
    assert told.output == expected


def test_mistakes_on_the_command_line_are_one_line(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "half.json").write_text('{"depth": ')
    for options, message in (
        (["--name", ".."], "bnmlp: name: .. cannot name a folder"),
        (["--config", tmp_path / "list.json"], "list.json: expected the fields of one run"),
        (["--config", tmp_path / "half.json"], "half.json is no JSON"),
        (["--config", tmp_path / "none.json"], "No such file"),
        (["--width", 10**5, "--depth", 10**5, "--dataset", "digits"], "Unable to allocate"),
        (["--depth", "0"], "bnmlp: depth: Input should be greater than or equal to 1, got 0"),
        (["--learning-rate", "nan"], "bnmlp: learning_rate: Input should be a finite number"),
        (["--dataset", "cifar10", "--root", tmp_path], "bnmlp data get cifar10"),
    ):
        result = CliRunner().invoke(
            app, ["train", "--directory", str(tmp_path / "run"), *map(str, options)]
        )
        assert result.exit_code in (1, 2)
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.output


def test_data_are_listed(tmp_path):
    shown = bnmlp("data", "list", "--root", tmp_path).output
    assert "mnist5k        4000 + 1000 samples" in shown
    assert "cifar100       missing: bnmlp data get cifar100" in shown
    assert "digits: 1442 + 355 samples" in bnmlp("data", "get", "digits").output
