"""What theory says beside what is measured, and which assumption fails elsewhere."""

import numpy as np
import pytest
import torch
from torch import nn

from bnmlp import BNMLP, measure, shape_
from bnmlp.diagnosis.prediction import weights_kind
from bnmlp.theory import explosion_rate_bounds, gaussian_explosion_rate
from bnmlp.theory.meanfield import gradient_growth


def chain(depth=30, width=100, activation=nn.ReLU, norm=nn.BatchNorm1d, *, spread=1.0,
          orthogonal=False, gain=1.0, after=False):  # fmt: skip
    parts = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        if orthogonal:
            nn.init.orthogonal_(linear.weight, spread)
        else:
            nn.init.normal_(linear.weight, std=spread / width**0.5)
        norms = [norm(width)] if norm else []
        for part in norms:
            nn.init.constant_(part.weight, gain)
        acts = [activation()] if activation else []
        parts += [linear, *(acts + norms if after else norms + acts)]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def batch(samples=100, features=100):
    return torch.randn(samples, features), torch.randint(10, (samples,))


CASES = {
    "ReLU": ({}, gaussian_explosion_rate(100, activation="relu")),
    "orthogonal ReLU": ({"orthogonal": True}, gradient_growth("relu")),
    "tanh with gain": ({"activation": nn.Tanh, "gain": 0.5}, gradient_growth("tanh", 0.5)),
    "layer norm": ({"norm": nn.LayerNorm, "activation": nn.Tanh},
                   gradient_growth("tanh", norm="layer")),
    "layer norm after": ({"norm": nn.LayerNorm, "after": True}, gradient_growth("relu")),
    "linear": ({"activation": None}, gaussian_explosion_rate(100)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_formula_is_that_of_the_theory(case):
    options, expected = CASES[case]
    found = measure(chain(**options), *batch()).prediction
    assert found.low == found.high == pytest.approx(expected)
    assert all(a.holds for a in found.assumptions) and found.chapter


HEADS = {
    "two maps": lambda: [nn.Linear(100, 100), nn.Linear(100, 10)],
    "dropout": lambda: [nn.Dropout(0.5), nn.Linear(100, 10)],
    "a norm": lambda: [nn.LayerNorm(100), nn.Linear(100, 10)],
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_of_another_kind_changes_nothing_in_the_layers_before_it(head):
    body = list(chain())[:-1]
    report = measure(nn.Sequential(*body, *HEADS[head]()), *batch())
    assert report.prediction.low == pytest.approx(CASES["ReLU"][1])
    assert report.prediction.low == pytest.approx(report.rate.value, abs=0.02)
    middle = nn.Sequential(*body[:60], nn.Linear(100, 100), *body[60:], nn.Linear(100, 10))
    assert "differ in their normalisation" in str(measure(middle, *batch()).prediction)


@pytest.mark.parametrize("case", ["ReLU", "orthogonal ReLU", "layer norm", "linear"])
def test_and_the_measured_rate_is_close(case):
    options, expected = CASES[case]
    rate = measure(chain(**options), *batch()).rate
    assert rate.value == pytest.approx(expected, abs=0.02)


def test_the_rank_of_the_batch_decides_for_orthogonal_weights():
    x, y = batch(31)
    options = {"activation": None, "orthogonal": True}
    few = measure(chain(**options), x, y)
    assert (few.prediction.low, few.prediction.high) == explosion_rate_bounds(100, 30)
    assert few.prediction.low < few.rate.high and few.rate.low < few.prediction.high
    repeated = measure(chain(**options), x.repeat(4, 1), y.repeat(4))
    assert (repeated.prediction.low, repeated.prediction.high) == explosion_rate_bounds(100, 30)
    full = measure(chain(width=50, **options), *batch(100, 50))
    assert full.prediction.low == full.prediction.high == 0


@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_without_normalisation_mean_field_has_the_rate_between_order_and_chaos(spread):
    report = measure(chain(norm=None, activation=nn.Tanh, spread=spread), *batch())
    assert report.prediction.rule == "mean-field"
    assert report.rate.value == pytest.approx(report.prediction.low, abs=0.03)
    assert (report.rate.low > 0) == (spread == 2)


def test_a_bnmlp_has_the_prediction_of_its_choices():
    x, y = batch()
    model = BNMLP(100, 100, 20, 10, activation="tanh", gain=0.5, gain_exponent=0.2)
    found = measure(model, x, y).prediction
    gains = [0.5 * layer**-0.2 for layer in range(2, 21)]
    expected = np.mean([gradient_growth("tanh", gain) for gain in gains])
    assert found.low == pytest.approx(expected)
    gaussian = measure(BNMLP(100, 100, 20, 10, activation="relu", init="gaussian"), x, y)
    assert gaussian.prediction.low == gaussian_explosion_rate(100, activation="relu")


@pytest.mark.parametrize("level", ["modules", "additions"])
def test_shaped_activations_have_the_prediction_of_their_gains(level):
    model = chain(activation=nn.Tanh, orthogonal=True, gain=0.9)
    shape_(model, 0.4)
    found = measure(model, *batch(), level=level).prediction
    gains = [0.9 * layer**-0.4 for layer in range(2, 31)]
    expected = np.mean([gradient_growth("tanh", gain) for gain in gains])
    assert found.low == pytest.approx(expected)
    shape_(model, 0.0)
    assert measure(model, *batch()).prediction.low > 5 * expected, "the control, without gains"


def test_a_gain_without_a_norm_before_it_has_no_formula():
    model = chain(activation=nn.Tanh, norm=None)
    assert measure(model, *batch()).prediction.applies, "the control"
    shape_(model, 0.4)
    assert "gains" in measure(model, *batch()).prediction.failing.found


class Functional(nn.Module):
    """Activations that are no modules."""

    def __init__(self, function, depth=12):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(40, 40, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm1d(40) for _ in range(depth))
        self.function = function

    def forward(self, x):
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = self.function(norm(linear(x)))
        return x


def test_activations_called_as_functions_are_seen():
    found = measure(Functional(torch.relu), *batch(60, 40)).prediction
    assert found.low == gaussian_explosion_rate(60, activation="relu")
    unseen = measure(Functional(lambda x: x * x.sigmoid().detach()), *batch(60, 40)).prediction
    assert not unseen.applies
    scaled = measure(Functional(lambda x: torch.tanh(0.3 * x)), *batch(60, 40)).prediction
    assert "no module acts" in scaled.failing.found


def residual():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(40, 40) for _ in range(8))

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x).relu()
            return x

    return Residual()


def widening():
    sizes = [40, 40, 50, 60, 70, 80]
    pairs = zip(sizes[:-1], sizes[1:], strict=True)
    return nn.Sequential(*(m for a, b in pairs for m in (nn.Linear(a, b), nn.BatchNorm1d(b))))


def learned():
    model = chain(8, 40)
    nn.init.uniform_(model[4].weight, 0.5, 1.5)
    return model


def low_rank():
    model = chain(8, 40)
    with torch.no_grad():
        for part in model:
            if isinstance(part, nn.Linear):
                part.weight[:, 5:] = 0
    return model


FAILING = {
    "branches are added": residual,
    "width 40, 50": widening,
    "scales of a normalisation differ": learned,
    "neither": low_rank,
    "2 is a second normalisation": lambda: nn.Sequential(
        *(m for _ in range(6) for m in (nn.Linear(40, 40), nn.LayerNorm(40), nn.BatchNorm1d(40)))
    ),
    "is a Conv1d, not a Linear": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 40)), *(nn.Conv1d(1, 1, 3, padding=1) for _ in range(6)), nn.Flatten()
    ),
    "2 layers": lambda: nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 10)),
    "a Dropout": lambda: nn.Sequential(
        *(m for _ in range(6) for m in (nn.Linear(40, 40), nn.Dropout(0.5)))
    ),
}


@pytest.mark.parametrize("what", FAILING)
def test_the_assumption_that_fails_is_named(what):
    x, y = batch(30, 40)
    prediction = measure(FAILING[what](), x, y).prediction
    assert not prediction.applies
    assert what in str(prediction), str(prediction)


def test_repeated_samples_are_not_taken_for_distinct_ones():
    x, y = batch(20, 40)
    prediction = measure(chain(10, 40), x.repeat(2, 1), y.repeat(2)).prediction
    assert "rank 19 of 40" in str(prediction)


def test_kinds_of_weights_are_told_apart():
    gaussian = [torch.randn(30, 50) for _ in range(4)]
    uniform = [torch.rand(60, 30) - 0.5 for _ in range(4)]
    orthogonal = [torch.linalg.qr(torch.randn(40, 40))[0] for _ in range(4)]
    semi = [torch.linalg.qr(torch.randn(40, 20))[0] for _ in range(4)]
    spiked = [torch.randn(30, 30) + 1 for _ in range(4)]
    kinds = [weights_kind(w)[0] for w in (gaussian, uniform, orthogonal, semi, spiked)]
    assert kinds == ["independent", "independent", "orthogonal", "orthogonal", "neither"]
