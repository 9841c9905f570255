"""Networks and batches that people come with: each is measured rightly, or refused in words."""

import dataclasses
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

import bnmlp
from bnmlp import measure
from bnmlp.diagnosis.statistics import compare


def perceptron(columns=20, out=5):
    layers = [nn.Linear(columns, 32)]
    for _ in range(3):
        layers += [nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32)]
    return nn.Sequential(*layers, nn.Linear(32, out))


def data(n=32, columns=20, classes=5):
    return torch.randn(n, columns), torch.randint(classes, (n,))


def gradient_norms(model, loss):
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()))
    return {name: g.norm().item() for name, g in zip(named, found, strict=True)}


def assert_gradients(report, expected, names):
    """Rows of these modules have the gradient norms of autograd."""
    table = report.tables[0]
    for name in names:
        found = table["weight_gradient_norm"][table.name.index(name)]
        assert found == pytest.approx(expected[f"{name}.weight"], rel=1e-4), name


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 8))
        self.head = nn.Linear(16, 2)

    def forward(self, left, right):
        return self.head(torch.cat([self.trunk(left), self.trunk(right)], 1))


def test_a_trunk_that_two_named_inputs_share_has_rows_for_both():
    model, y = Siamese(), torch.randint(2, (12,))
    pair = {"left": torch.randn(12, 20), "right": torch.randn(12, 20)}
    report = measure(model, pair, y)
    assert [n for n in report.tables[0].name if n.startswith("trunk.0")] == ["trunk.0", "trunk.0#2"]
    assert_gradients(report, gradient_norms(model, F.cross_entropy(model(**pair), y)),
                     ["trunk.0", "trunk.0#2".removesuffix("#2"), "head"])  # fmt: skip


class Sides(nn.Module):
    """A U-Net of two resolutions, whose skip is concatenated."""

    def __init__(self):
        super().__init__()
        self.down, self.low = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 3, 1)

    def forward(self, x):
        high = F.relu(self.down(x))
        low = F.relu(self.low(F.max_pool2d(high, 2)))
        return self.out(torch.cat([high, self.up(low)], 1))


def test_a_network_with_a_concatenated_skip_labels_pixels():
    model, x, y = Sides(), torch.randn(4, 1, 16, 16), torch.randint(3, (4, 16, 16))
    report = measure(model, x, y)
    assert_gradients(report, gradient_norms(model, F.cross_entropy(model(x), y)),
                     ["down", "low", "up", "out"])  # fmt: skip
    assert report.verdict == "none"


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(8, 16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, packed):
        return self.head(self.gru(packed)[1][-1])


def test_gates_see_packed_sequences():
    model, y = Sequence(), torch.randint(3, (6,))
    packed = pack_padded_sequence(torch.randn(6, 5, 8), torch.tensor([5, 4, 4, 3, 2, 1]), True)
    report = measure(model, packed, y)
    assert report.facts.samples == 6
    assert_gradients(report, gradient_norms(model, F.cross_entropy(model(packed), y)), ["head"])


class Graph(nn.Module):
    """Sums over neighbours, so that no node has an output of its own."""

    def __init__(self, width=8):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(3))
        self.head = nn.Linear(width, 3)

    def forward(self, h, source, target):
        for linear, norm in zip(self.maps, self.norms, strict=True):
            h = h + norm(torch.zeros_like(h).index_add(0, target, linear(h)[source])).relu()
        return self.head(h)


@pytest.mark.parametrize("nodes", [30, 2])
def test_nodes_of_a_graph_are_not_judged_by_halves(nodes):
    """Edges between the first two nodes are edges of half a graph, too, but of another one."""
    given = torch.randn(30, 8), *torch.randint(nodes, (2, 100))
    model, y = Graph(), torch.randint(3, (30,))
    report = measure(model, given, y)
    assert_gradients(report, gradient_norms(model, F.cross_entropy(model(*given), y)), ["maps.0"])
    summary = report.statistics.summary
    assert summary["loss_running"] is not None and summary["loss_recalibrated"] is None
    why = "part in each other" if nodes == 2 else "IndexError"
    assert why in summary["not_recalibrated"] and summary["not_recalibrated"] in str(report)


class Drawing(nn.Module):
    """Adds noise in evaluation too, as what samples from a distribution does."""

    def __init__(self):
        super().__init__()
        self.inner = perceptron()

    def forward(self, x):
        return self.inner(x) + torch.randn(len(x), 1)


@pytest.mark.parametrize("build", [perceptron, Drawing])
def test_the_control_samples_that_are_apart_are_judged_by_halves(build):
    summary = measure(build(), *data()).statistics.summary
    assert summary["not_recalibrated"] is None and summary["loss_recalibrated"] is not None


@dataclasses.dataclass(frozen=True)
class Scores:
    words: str
    scores: torch.Tensor


class Holder(nn.Module):
    """Takes and returns objects with fields."""

    def __init__(self):
        super().__init__()
        self.inner = perceptron()

    def forward(self, batch):
        return Scores(batch.words, self.inner(batch.scores))


def test_inputs_and_outputs_may_be_data_classes():
    model, (x, y) = Holder(), data()
    report = measure(model, Scores("pixels", x), y)
    plain = measure(model.inner, x, y)
    assert report.facts.samples == 32 and report.facts.loss == plain.facts.loss
    assert report.statistics.summary == plain.statistics.summary
    own = measure(model, Scores("pixels", x), y, loss_fn=lambda out, y: out.scores.square().mean())
    assert own.facts.loss_is == "<lambda>"


class Adapter(nn.Module):
    """A frozen map with a trained correction of low rank that starts at zero."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def test_frozen_maps_with_adapters_are_measured_and_stay_frozen():
    model = nn.Sequential(Adapter(nn.Linear(20, 32)), nn.ReLU(), Adapter(nn.Linear(32, 5)))
    x, y = data()
    trained = [p for p in model.parameters() if p.requires_grad]
    report = measure(model, x, y, optimizer=torch.optim.SGD(trained, lr=0.1))
    rows = report.layers.set_index("name")
    assert rows.loc["0.base", "weight_gradient_norm"] > 0, "measured as if it were free"
    assert np.isnan(rows.loc["0.base", "update"]), "but no optimiser moves it"
    assert not model[0].base.weight.requires_grad and model[0].up.weight.grad is None
    (zero,) = [f for f in report.findings if f.kind == "zero-gradients"]
    assert zero.severity == "note" and "0.up" in zero.evidence["zero_weights"]


def test_numbers_of_several_kinds_in_one_network():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Linear(20, 32).double(), nn.Linear(32, 32).bfloat16()
            self.waves = nn.Linear(17, 17, dtype=torch.cfloat)
            self.head = nn.Linear(32, 5)

        def forward(self, x):
            h = self.narrow(self.wide(x.double()).relu().bfloat16()).float()
            return self.head(torch.fft.irfft(self.waves(torch.fft.rfft(h)), n=32))

    model, (x, y) = Mixed(), data()
    options = {"spectra": True, "jacobian": True, "level": "functions"}
    report = measure(model, x, y, optimizer=torch.optim.Adam(model.parameters()), **options)
    rows = report.layers.set_index("name")
    assert [rows.loc[name, "dtype"] for name in ("wide", "narrow", "head")] == [
        "float64", "bfloat16", "float32",
    ]  # fmt: skip
    assert "calls that return complex numbers have no rows" in report.headline()
    assert rows.loc["narrow", "headroom"] < rows.loc["wide", "headroom"]


def test_sparse_inputs_and_gradients_count_as_the_same_dense_numbers():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(20, 16)), nn.Linear(16, 5)

        def forward(self, x):
            return self.head(torch.mm(x, self.weight).relu())

    model, (x, y) = Product(), data()
    reports = [measure(model, given, y) for given in (x, x.to_sparse())]
    assert reports[0].facts.loss == pytest.approx(reports[1].facts.loss)
    tokens = torch.randint(50, (32, 7))
    model = nn.Sequential(nn.Embedding(50, 16, sparse=True), nn.Flatten(), nn.Linear(112, 5))
    step = torch.optim.SparseAdam(model[0].parameters())
    norms = []
    for model[0].sparse in (True, False):
        report = measure(model, tokens, y, optimizer=step if model[0].sparse else None)
        norms.append(report.tables[0]["weight_gradient_norm"][0])
    assert norms[0] == pytest.approx(norms[1])


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = perceptron()

    def forward(self, x):
        x += 1
        return self.inner(x.relu_())


def overwriting_loss(output, y):
    return F.mse_loss(output, y.mul_(2).sub_(1))


def test_a_network_that_overwrites_its_input_sees_the_same_input_each_time():
    model, (x, _) = Overwriting(), data()
    y = torch.rand(32, 5)
    kept_x, kept_y = x.clone(), y.clone()
    found = measure(model, x, y, loss_fn=overwriting_loss)
    assert torch.equal(x, kept_x) and torch.equal(y, kept_y)
    plain = measure(model.inner, (x + 1).relu(), 2 * y - 1, loss_fn=F.mse_loss)
    assert found.facts.loss == pytest.approx(plain.facts.loss)
    for key in ("loss_batch", "loss_running", "loss_recalibrated"):
        assert found.statistics.summary[key] == pytest.approx(plain.statistics.summary[key])
    batches = [x[:16], x[16:]]
    bnmlp.recalibrate(model, batches)
    averages = [v.clone() for v in model.buffers()]
    bnmlp.recalibrate(model.inner, [(part + 1).relu() for part in batches])
    assert torch.equal(x, kept_x)
    for a, b in zip(averages, model.buffers(), strict=True):
        torch.testing.assert_close(a, b)


class Caching(nn.Module):
    """Sets and registers things in a pass, as many do on the first one."""

    def __init__(self):
        super().__init__()
        self.inner, self.longest, self.late = nn.Linear(20, 5), 0, None

    def forward(self, x):
        if self.late is None:
            self.late = nn.Linear(20, 20)
            self.register_buffer("mask", torch.ones(20), persistent=False)
        self.longest, self.last = max(self.longest, len(x)), self.inner(self.late(x) * self.mask)
        return self.last


def test_what_a_pass_sets_or_registers_in_a_module_is_gone():
    model, (x, y) = Caching(), data()
    before = set(vars(model)), list(model.state_dict())
    measure(model, x, y)
    assert (set(vars(model)), list(model.state_dict())) == before
    assert model.longest == 0 and model.late is None and not hasattr(model, "mask")
    model(x)
    assert model.longest == 32 and isinstance(model.late, nn.Linear), "and it works as before"


def test_a_scale_that_does_not_exist_is_blamed_on_the_loss_and_not_on_the_last_layer():
    model, (x, y) = perceptron(), data()
    for loss_fn in (
        lambda out, y: F.cross_entropy(out, y) * float("nan"),
        lambda out, y: out.square().mean().neg().log(),
    ):
        report = measure(model, x, y, loss_fn=loss_fn)
        assert report.verdict == "loss-not-finite"
        assert "gradient-not-finite" not in {f.kind for f in report.findings}


def test_values_that_do_not_exist_are_counted_in_all_batches_and_in_targets():
    model, batches = perceptron(), [data() for _ in range(4)]
    batches[2][0][0, :3] = float("nan")
    report = measure(model, batches)
    found = {f.kind: f for f in report.findings}
    assert found["input-not-finite"].evidence["entries"] == 3
    assert found["output-not-finite"].evidence["entries"] == 32
    y = torch.randn(32, 5)
    y[4, 2:] = float("inf")
    (found,) = [f for f in measure(model, data()[0], y).findings if f.severity == "broken"]
    assert found.kind == "loss-not-finite" and "targets hold 3 values" in found.sentence


def test_a_loss_that_is_flat_is_no_fault_of_the_layers():
    (x, y), model = data(), perceptron()
    for loss_fn in (
        lambda out, y: F.relu(out.abs().mean() - 100),
        lambda out, y: F.cross_entropy(1e4 * (out + 9 * F.one_hot(y, 5)), y),
    ):
        report = measure(model, x, y, loss_fn=loss_fn)
        (found,) = [f for f in report.findings if f.kind == "zero-gradients"]
        assert found.severity == "note" and "slope of the loss in the output" in found.sentence
        assert report.verdict == "none"


def test_a_rectifier_that_is_off_explains_what_follows_from_it():
    layers = [m for _ in range(7) for m in (nn.Linear(20, 20), nn.ReLU())]
    model, (x, y) = nn.Sequential(*layers, nn.Linear(20, 5)), data()
    nn.init.constant_(model[4].bias, -50.0)
    found = {f.kind: f for f in measure(model, x, y).findings}
    assert "samples-align" not in found and found["dead-units"].evidence["calls"] == ["5"]
    assert "5 is zero for every sample" in found["zero-gradients"].sentence
    assert found["zero-gradients"].severity == "serious"


def deep_plain(activation):
    layers = []
    for _ in range(20):
        layers += [nn.Linear(100, 100), activation()]
        nn.init.normal_(layers[-2].weight, std=0.05)
    return nn.Sequential(*layers, nn.Linear(100, 5))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU])
def test_a_critical_variance_is_advised_for_activations_that_have_it_in_the_chapter(activation):
    report = measure(deep_plain(activation), *data(60, 100))
    found = [f for f in report.findings if f.kind.startswith(("gradient-", "signal-"))]
    advised = any(f.advice and "critical" in f.advice for f in found)
    assert report.prediction.rule == "mean-field" and found
    assert advised == (activation in (nn.Tanh, nn.ReLU))


def test_steps_in_time_are_told_from_layers():
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.RNNCell(20, 32), nn.Linear(32, 5)

        def forward(self, x):
            h = x.new_zeros(len(x), 32)
            for _ in range(60):
                h = self.cell(x, h)
            return self.head(h)

    (found,) = [f for f in measure(Unrolled(), *data()).findings if f.kind == "gradient-vanishing"]
    assert "calls of one weight" in found.sentence and "what layers put out" in found.sentence
    plain = measure(deep_plain(nn.Tanh), *data(60, 100)).findings
    assert not any("calls of one weight" in f.sentence for f in plain)


def test_parts_in_evaluation_mode_are_named_since_training_measures_others():
    model, (x, y) = perceptron().train(), data()
    model[1].eval()
    assert "1 part was in evaluation mode" in measure(model, x, y).headline()
    assert "evaluation mode" not in measure(model, x, y, training=None).headline()
    assert "the model was in evaluation mode" in measure(model.eval(), x, y).headline()
    assert "was in evaluation" not in measure(model.train(), x, y).headline()


def test_calls_under_vmap_have_no_rows_and_are_told():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(20, 8), nn.Linear(8, 5)

        def forward(self, x):
            return self.head(torch.vmap(lambda row: self.inner(row).relu() + row[:8])(x))

    for level in ("modules", "additions", "functions"):
        report = measure(Mapped(), *data(), level=level)
        assert report.tables[0].name == ["head"] and "vmap" in report.headline(), level


def test_a_network_that_only_trains_is_measured_and_this_is_told():
    class OnlyTraining(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = perceptron()

        def forward(self, x):
            if not self.training:
                raise NotImplementedError("no evaluation yet")
            return self.inner(x)

    report = measure(OnlyTraining(), *data())
    assert report.statistics is None
    assert "not compared with those of the batch, NotImplementedError: no" in report.headline()


def test_one_part_may_be_named_without_a_list():
    model, (x, y) = perceptron(), data()
    assert list(measure(model, x, y, jacobian="0").jacobian) == ["model", "0"]
    with pytest.raises(ValueError, match="no part is called 'head'"):
        measure(model, x, y, jacobian="head")


def test_an_input_that_counts_no_samples_is_measured_without_scores():
    class Opaque:
        def __init__(self, x):
            self.x = x

    class Opened(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = perceptron()

        def forward(self, given):
            return self.inner(given.x)

    report = measure(Opened(), Opaque(data()[0]), data()[1])
    assert report.statistics.summary["unscored"] == "the input has no tensor that counts samples"


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch would rather have it gone
        return torch.jit.script(perceptron())


def made_in_inference_mode():
    with torch.inference_mode():
        return perceptron()


X, Y = torch.linspace(-1, 1, 160).view(8, 20), torch.arange(8) % 5
REFUSED = {
    "an array": (perceptron, X.numpy(), Y, "arrays of NumPy"),
    "arrays as targets": (perceptron, X, Y.numpy(), "y holds arrays of NumPy"),
    "arrays by name": (Siamese, {"left": X, "right": X.numpy()}, Y % 2, "x holds arrays"),
    "a dataset": (perceptron, TensorDataset(X, Y), None, "pass torch.utils.data.DataLoader"),
    "a loader and targets": (perceptron, DataLoader(TensorDataset(X, Y)), Y, "leave y out"),
    "an empty batch": (perceptron, X[:0], Y[:0], "the batch is empty"),
    "no batches": (perceptron, [], None, "iterable of batches is empty"),
    "numbers on meta": (perceptron, X.to("meta"), Y, "'meta' and holds no numbers"),
    "labels beyond the classes": (perceptron, X, Y + 3, "labels lie in 3..7.* 5 classes"),
    "labels below zero": (perceptron, X, Y - 2, "labels lie in -2..2"),
    "one logit for two classes": (lambda: perceptron(out=1), X, Y % 2, "BCEWithLogitsLoss"),
    "one-hot integers": (perceptron, X, F.one_hot(Y, 5), "argmax"),
    "targets in a list": (perceptron, X, Y.tolist(), "no loss is known for targets of type list"),
    "no parameters": (nn.ReLU, X, X, "has the model any"),
    "a part that is scripted": (lambda: nn.Sequential(scripted(), nn.ReLU()), X, Y, r"\(0\); take"),
    "a scripted module": (scripted, X, Y, "scripted module shows none"),
    "made in inference mode": (made_in_inference_mode, X, Y, "0.weight was made under"),
    "a class": (lambda: nn.ReLU, X, Y, "a class; call it"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_measurement_is_refused_with_cause_and_remedy(what):
    build, x, y, words = REFUSED[what]
    with pytest.raises((ValueError, TypeError), match=words):
        measure(build(), x, y)


def test_ignored_labels_are_no_labels_beyond_the_classes():
    model = perceptron()
    y = torch.where(Y == 1, -100, Y)
    expected = F.cross_entropy(model(X), y).item()
    assert measure(model, X, y).facts.loss == pytest.approx(expected, rel=1e-5)


def test_matrices_that_are_no_modules_are_not_taken_for_layers_without_gradients():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(20, 20) / 20**0.5 for _ in range(6))
            self.head = nn.Linear(20, 5)

        def forward(self, x):
            for weight in self.weights:
                x = torch.tanh(x @ weight)
            return self.head(x)

    text = " ".join(str(measure(Raw(), *data())).split())
    assert "1 layer is seen; layers are modules with a matrix of their own" in text


def test_optimisers_and_scalers_are_what_they_are_taken_for():
    with pytest.raises(TypeError, match="optimizer= takes one"):
        measure(perceptron(), X, Y, optimizer=[])
    with pytest.raises(TypeError, match="scaler= takes a"):
        measure(perceptron(), X, Y, scaler=1024.0)


def test_a_step_that_needs_the_loss_again_is_refused():
    model = perceptron()
    with pytest.raises(ValueError, match="LBFGS evaluates the loss several times"):
        measure(model, X, Y, optimizer=torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.zeros(8, 21), r"called with a tensor of shape \(8, 21\), float32, on cpu"),
        (torch.zeros(8, 20, dtype=torch.long), r"a tensor of shape \(8, 20\), int64"),
        ((X, X), r"2 arguments: a tensor"),
        ({"pixels": X}, r"pixels=a tensor"),
        (X[:1], "give more samples, or training=False"),
    ],
)
def test_an_error_of_the_model_is_its_own_with_what_it_was_called_with(given, words):
    with pytest.raises((RuntimeError, TypeError, ValueError)) as error:
        measure(perceptron(), given, Y)
    assert re.search(words, "\n".join(error.value.__notes__)), error.value.__notes__


def test_an_error_of_the_loss_says_in_which_order_it_is_called():
    for wrong in (lambda y, out: F.cross_entropy(out, y), lambda out: out.mean()):
        with pytest.raises((RuntimeError, TypeError)) as error:
            measure(perceptron(), X, Y, loss_fn=wrong)
        assert "called with the output, here a tensor of shape (8, 5)" in error.value.__notes__[0]


def test_networks_side_by_side_refuse_what_they_cannot_be_measured_with():
    model = bnmlp.BNMLP(20, 16, 5, 5)
    for x, y, loss_fn, words in (
        (X, Y + 3, None, "labels lie in 3..7"),
        ({"x": X}, Y, None, "samples as a tensor"),
        (X, Y, nn.CrossEntropyLoss(reduction="none"), "one number"),
    ):
        with pytest.raises(ValueError, match=words):
            measure(model, x, y, loss_fn=loss_fn)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    told = measure(model, X, Y, optimizer=optimizer, spectra=True).headline()
    assert "no effect on networks of several replicas: optimizer, spectra" in told
    assert "no effect" not in measure(model, X, Y).headline()


def test_cures_refuse_what_is_no_module_or_no_data():
    for cure in (bnmlp.orthogonal_, bnmlp.recalibrate, bnmlp.shape_):
        with pytest.raises(TypeError, match="expected a module"):
            cure("network", X)
        with pytest.raises(ValueError, match="scripted"):
            cure(scripted(), 0.4 if cure is bnmlp.shape_ else X)
    for no_data in (X.numpy(), None, TensorDataset(X, Y)):
        with pytest.raises(TypeError, match="recalibrate: expected a tensor"):
            bnmlp.recalibrate(perceptron(), no_data)
    with pytest.raises(ValueError, match="'meta'"):
        bnmlp.recalibrate(perceptron().to("meta"), X)


def test_sequences_along_the_first_axis_are_no_samples():
    """Words of a sentence attend to each other, so half of them are another sentence."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.norm = nn.TransformerEncoderLayer(16, 2, 32), nn.BatchNorm1d(16)

        def forward(self, x):
            h = self.attention(x)
            return self.norm(h.flatten(0, 1)).view_as(h)

    found = compare(Words(), torch.randn(8, 4, 16), torch.randint(16, (8, 4))).summary
    assert "part in each other" in found["not_recalibrated"]
