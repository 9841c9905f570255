"""Rows along a training run."""

import copy
import io

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnmlp import measure, watch


def network():
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(8, 3)
    )


class Run:
    """A training run that can be gone on with."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = network()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)

    def steps(self, count):
        for _ in range(count):
            self.optimizer.zero_grad()
            x, y = torch.randn(16, 5), torch.randint(3, (16,))
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
        return self


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_rows_are_those_of_a_measurement_at_that_step(tmp_path):
    run = Run()
    run.model[3].p = 0.0
    with watch(run.model, every=4, file=tmp_path / "rows.csv"):
        run.steps(4)
        x, y = torch.randn(16, 5), torch.randint(3, (16,))
        expected = measure(run.model, x, y, level="modules").tables[0]
        F.cross_entropy(run.model(x), y).backward()
    rows = pd.read_csv(tmp_path / "rows.csv", dtype={"name": str})
    assert rows["step"].unique().tolist() == [0, 4]
    last = rows[rows["step"] == 4]
    assert last["name"].tolist() == expected.name
    for column in ("mean_square", "gradient_norm", "weight_gradient_norm", "cosine", "dead"):
        np.testing.assert_allclose(last[column], expected[column], rtol=1e-5, err_msg=column)


def test_watching_changes_nothing(tmp_path):
    watched, alone = Run(), Run()
    alone.steps(30)
    torch.manual_seed(0)
    watched = Run()
    with watch(watched.model, every=7, file=tmp_path / "rows.jsonl", level="functions"):
        watched.steps(30)
    for a, b in zip(alone.model.state_dict().values(), watched.model.state_dict().values(),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)
    assert hooks(watched.model) == 0
    assert not any(p._backward_hooks for p in watched.model.parameters())


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_resumed_run_appends(tmp_path, name):
    file, run = tmp_path / name, Run()
    with watch(run.model, every=10, file=file):
        run.steps(25)
    with watch(run.model, every=10, file=file) as second:
        assert second.step == 30
        run.steps(11)
    with watch(run.model, every=10, file=file, start=100):
        run.steps(1)
    read = pd.read_csv(file) if name.endswith("csv") else pd.read_json(file, lines=True)
    assert read["step"].unique().tolist() == [0, 10, 20, 30, 40, 100]
    assert len(read) == 6 * 5
    read["kind"].value_counts()


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    file, run = tmp_path / "rows.csv", Run()
    with watch(run.model, every=10, file=file):
        run.steps(1)
    whole = file.read_text()
    file.write_text(whole + "10,0,Linear,16x")
    with watch(run.model, every=10, file=file):
        run.steps(1)
    assert file.read_text().startswith(whole + "10,0,Linear,16x8")
    assert pd.read_csv(io.StringIO(file.read_text()))["step"].tolist() == [0] * 5 + [10] * 5


def test_an_error_in_the_network_loses_no_row_and_leaves_no_hook(tmp_path):
    run = Run()
    with pytest.raises(RuntimeError), watch(run.model, every=2, file=tmp_path / "rows.csv"):
        run.steps(2)
        run.model(torch.randn(16, 6))
    assert hooks(run.model) == 0
    assert pd.read_csv(tmp_path / "rows.csv")["step"].unique().tolist() == [0]
    with watch(run.model, every=1, file=tmp_path / "rows.csv") as going_on:
        with pytest.raises(RuntimeError):
            run.model(torch.randn(16, 6))
        run.steps(1)
    assert going_on.records == 1


def test_copies_and_saved_models_are_not_watched(tmp_path):
    run = Run()
    with watch(run.model, every=1, file=tmp_path / "rows.csv") as watching:
        run.steps(1)
        twin = copy.deepcopy(run.model)
        torch.save(run.model, tmp_path / "model.pt")
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
        for other in (twin, loaded):
            other(torch.randn(16, 5)).sum().backward()
    assert watching.records == 1


def test_evaluation_is_not_counted(tmp_path):
    run = Run()
    with watch(run.model, every=1, file=tmp_path / "rows.csv") as watching:
        run.model.eval()
        run.model(torch.randn(16, 5))
        run.model.train()
        with torch.no_grad():
            run.model(torch.randn(16, 5))
        assert watching.step == 0
        run.steps(3)
    assert watching.records == 3


def test_a_model_that_is_called_twice_before_its_backward_pass_is_recorded(tmp_path):
    run = Run()
    run.model[3].p = 0.0
    run.model.eval()[0].train()
    one, two = torch.randn(16, 5), torch.randn(16, 5)

    def loss():
        return (run.model(one) - run.model(two)).square().mean()

    expected = torch.autograd.grad(loss(), run.model[0].weight)[0].norm().item()
    run.model.training = True  # the call is one of training; its norm stays as it is
    with watch(run.model, every=4, file=tmp_path / "rows.csv") as watching:
        for _ in range(5):
            loss().backward()
    rows = pd.read_csv(tmp_path / "rows.csv", dtype={"name": str})
    assert watching.records == 3 and rows["step"].unique().tolist() == [0, 4, 8]
    assert not rows["name"].str.contains("#").any(), "the second call has no rows"
    first = rows[rows["name"] == "0"]
    np.testing.assert_allclose(first["weight_gradient_norm"], expected, rtol=1e-4)
    assert first["gradient_norm"].notna().all() and hooks(run.model) == 0


def test_calls_without_a_backward_pass_are_not_recorded(tmp_path):
    run, x = Run(), torch.randn(16, 5)
    with watch(run.model, every=3, file=tmp_path / "rows.csv") as watching:
        for _ in range(4):
            run.model(x)
        assert watching.records == 0
        run.steps(2)  # the pass of call 5 is none of call 3, which waits
        assert watching.records == 0
        run.steps(1)
    assert watching.records == 1 and hooks(run.model) == 0


def test_sparse_gradients_of_an_embedding_are_watched(tmp_path):
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3))
    with watch(model, file=tmp_path / "rows.csv"):
        F.cross_entropy(model(torch.randint(9, (16, 3))), torch.randint(3, (16,))).backward()
    found = pd.read_csv(tmp_path / "rows.csv")["weight_gradient_norm"][0]
    assert found == pytest.approx(model[0].weight.grad.to_dense().norm().item(), rel=1e-4)


def test_a_scaled_loss_is_unscaled(tmp_path):
    run, twin = Run(), Run()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = torch.randn(16, 5), torch.randint(3, (16,))
    for model in (run.model, twin.model):
        model[3].p = 0.0
    with watch(run.model, file=tmp_path / "a.csv", scaler=scaler):
        scaler.scale(F.cross_entropy(run.model(x), y)).backward()
    with watch(twin.model, file=tmp_path / "b.csv"):
        F.cross_entropy(twin.model(x), y).backward()
    a, b = (pd.read_csv(tmp_path / name)["weight_gradient_norm"] for name in ("a.csv", "b.csv"))
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("name", ["other.csv", "other.jsonl", "other.json"])
@pytest.mark.parametrize("content", ["a,b\n1,2\n", '{"a": 1}\n', '{"a": 1}', "words", "\xff\n"])
def test_files_of_others_are_refused_and_stay_as_they_are(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match="other columns"):
        watch(network(), file=file)
    assert file.read_bytes() == content.encode("latin1")


def test_what_cannot_be_watched_is_refused_in_words(tmp_path):
    for file in (tmp_path, tmp_path / "missing" / "rows.csv"):
        with pytest.raises(ValueError, match="is its folder there"):
            watch(network(), file=file)
    with pytest.raises(TypeError, match="watch: expected a module, got str"):
        watch("network", file=tmp_path / "rows.csv")
    with pytest.raises(ValueError, match="compiled"):
        watch(torch.compile(network(), backend="eager"), file=tmp_path / "rows.csv")
    with pytest.raises(ValueError, match="every must be"):
        watch(network(), every=0, file=tmp_path / "rows.csv")


def test_a_file_that_cannot_be_written_stops_the_watch_and_not_the_training(tmp_path):
    run = Run()
    (tmp_path / "removed").mkdir()
    watching = watch(run.model, every=1, file=tmp_path / "removed" / "rows.csv")
    (tmp_path / "removed").rmdir()
    with pytest.warns(UserWarning, match="watch: stopped"):
        run.steps(1)
    run.steps(2)
    assert watching.records == 0 and hooks(run.model) == 0
