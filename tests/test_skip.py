import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnmlp import evaluate, recalibrate
from bnmlp.layers.seeds import random_order
from bnmlp.networks.losses import matrix_gradients
from bnmlp.networks.skip import VARIANTS, SkipMLP

pytestmark = pytest.mark.usefixtures("float64")
SIZES = {"in_features": 6, "width": 7, "out_features": 3, "dtype": torch.float64}


class Plain(nn.Module):
    """One network of a stack, written as the study does, with PyTorch's own layers."""

    def __init__(self, model, r):
        super().__init__()
        self.variant = model.variant
        weights = [model.input_weight[r], *model.hidden_weight[:, r], model.output_weight[r]]
        biases = [*model.layer_bias[:, r], model.output_bias[r]]
        self.linears = nn.ModuleList(nn.Linear(w.shape[1], w.shape[0]) for w in weights)
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(7, eps=model.eps, momentum=model.momentum) for _ in biases[1:]
        )
        with torch.no_grad():
            for linear, w, b in zip(self.linears, weights, biases, strict=True):
                linear.weight.copy_(w)
                linear.bias.copy_(b)
            for i, norm in enumerate(self.norms if model.variant != "plain" else ()):
                norm.weight.copy_(model.norm_weight[i, r])
                norm.bias.copy_(model.norm_bias[i, r])

    def forward(self, x):
        *hidden, last = self.linears
        stages = [
            linear if self.variant == "plain" else nn.Sequential(linear, norm)
            for linear, norm in zip(hidden, self.norms, strict=True)
        ]
        x = F.relu(stages[0](x))
        if self.variant in ("plain", "batch"):
            for stage in stages[1:]:
                x = F.relu(stage(x))
            return last(x)
        for first, second in zip(stages[1::2], stages[2::2], strict=True):
            inner = F.relu(first(x))
            x = F.relu((x if self.variant == "skip" else inner) + second(inner))
        return last(x)


def randomise(model):
    """Parameters none of which is zero or one."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_is_that_of_plain_pytorch(variant):
    model = randomise(SkipMLP(8, variant, replicas=2, momentum=0.1, **SIZES))
    plain = [Plain(model, r) for r in range(2)]
    options = {"lr": 1e-2, "alpha": 0.9, "eps": 1e-3}
    optimisers = [torch.optim.RMSprop(m.parameters(), **options) for m in (model, *plain)]
    for _ in range(4):
        x, y = torch.randn(2, 11, 6), torch.randint(3, (2, 11))
        losses = [F.cross_entropy(*pair) for pair in zip(model(x), y, strict=True)]
        expected = [F.cross_entropy(plain[r](x[r]), y[r]) for r in range(2)]
        torch.testing.assert_close(torch.stack(losses), torch.stack(expected))
        for optimiser, loss in zip(optimisers, (sum(losses), *expected), strict=True):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    x = torch.randn(5, 6)
    for r in range(2):  # running averages included
        torch.testing.assert_close(model.eval()(x)[r], plain[r].eval()(x))


def test_depth_counts_linear_layers_and_pairs_round_up():
    for depth, layers in ((2, 1), (10, 9), (15, 14)):
        assert SkipMLP(depth, "batch", **SIZES).layers == layers
        assert SkipMLP(depth, "skip", **SIZES).layers == layers + (layers % 2 == 0)


def test_skip_connections_pass_what_layers_destroy():
    x = torch.randn(20, 6)
    for variant in ("batch", "skip"):
        model = SkipMLP(9, variant, **SIZES)
        with torch.no_grad():
            model.norm_weight[1:] = 0
        first, *_, last = model.representations(x)
        if variant == "skip":
            assert torch.equal(first, last)
        else:
            assert last.abs().max() == 0, f"{last.abs().max():.2g} of a constant"


def test_networks_are_independent_of_their_neighbours():
    one, three = SkipMLP(6, **SIZES), SkipMLP(6, replicas=3, **SIZES)
    x, y = torch.randn(9, 6), torch.randint(3, (9,))
    torch.testing.assert_close(one(x)[0], three(x)[0])
    assert not torch.allclose(three(x)[0], three(x)[1])
    alone, together = (matrix_gradients(network, x, y)[0] for network in (one, three))
    for name, gradient in alone.items():
        torch.testing.assert_close(gradient[0], together[name][0])


def test_weights_have_the_variance_of_glorot():
    model = SkipMLP(4, in_features=784, replicas=2)
    for weight in (model.input_weight, model.hidden_weight):
        expected = 2 / sum(weight.shape[-2:])
        assert weight.var().item() == pytest.approx(expected, rel=0.02)
        assert weight.abs().max() <= (3 * expected) ** 0.5
    he = SkipMLP(4, replicas=2, init_gain=2**0.5)
    torch.testing.assert_close(he.hidden_weight, 2**0.5 * model.hidden_weight)


def test_statistics_are_those_that_they_are_named_after():
    model = randomise(SkipMLP(6, "batch", replicas=2, **SIZES))
    order = random_order(24, 0)
    x, y = torch.randn(24, 6), torch.randint(3, (24,))
    model(torch.randn(50, 6) * 3 + 1)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def accuracy(logits):
        return (logits.argmax(-1) == y).double().mean(-1)

    found = {
        s: evaluate(model, x, y, s, calibration=x, batch_size=8)
        for s in ("batch", "running", "recalibrated")
    }
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(found["running"].accuracy, accuracy(model.eval()(x)))
    parts = torch.cat([model.train()(part) for part in x[order].split(8)], 1)
    parts = parts[:, order.argsort()]
    torch.testing.assert_close(found["batch"].accuracy, accuracy(parts))
    losses = torch.stack([F.cross_entropy(logits, y) for logits in parts])
    torch.testing.assert_close(found["batch"].loss, losses)
    one_batch = model(x)
    recalibrate(model, x)
    torch.testing.assert_close(model.eval()(x), one_batch)
    torch.testing.assert_close(found["recalibrated"].accuracy, accuracy(one_batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_deep_network_predicts_after_recalibration_what_one_batch_does(dtype):
    x = torch.randn(300, 20, dtype=dtype)
    model = SkipMLP(40, "batch", in_features=20, width=32, replicas=3, dtype=dtype)
    one_batch = model(x).argmax(-1)
    recalibrate(model, x)
    agreement = (model.eval()(x).argmax(-1) == one_batch).double().mean()
    model.running_var.mul_(len(x) / (len(x) - 1))  # control: PyTorch's unbiased variance
    unbiased = (model(x).argmax(-1) == one_batch).double().mean()
    assert agreement > 0.99 > 0.9 > unbiased, f"{agreement} with the biased, {unbiased} without"


def test_statistics_stay_as_they_were_when_samples_are_refused():
    model = SkipMLP(4, "batch", replicas=2, **SIZES).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    y = torch.zeros(5, dtype=torch.int64)
    for call, message in (
        (lambda: recalibrate(model, torch.randn(1, 6)), "batch of 1 sample"),
        (lambda: recalibrate(model, torch.randn(3, 5, 6)), r"got \(3, 5, 6\)"),
        (lambda: evaluate(model, torch.randn(1, 6), y[:1], "batch"), "batch of 1 sample"),
        (lambda: evaluate(model, torch.randn(5, 6), y[:4]), "5 samples need as many labels"),
        (lambda: evaluate(model, torch.randn(5, 6), y, "batch", batch_size=1), "batch of 1 sample"),
        (
            lambda: evaluate(
                model, torch.randn(5, 6), y, "recalibrated", calibration=torch.randn(3, 9, 6)
            ),
            r"got \(3, 9, 6\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not model.training and model.momentum == 0.01
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_no_batch_of_a_test_set_is_left_with_one_sample():
    model = SkipMLP(4, "batch", replicas=2, **SIZES)
    x, y = torch.randn(355, 6), torch.randint(3, (355,))
    found = evaluate(model, x, y, "batch", batch_size=2)
    order = random_order(355, 0)
    parts = [x[order[:3]], *x[order[3:]].split(2)]
    logits = torch.cat([model(part) for part in parts], 1)[:, order.argsort()]
    torch.testing.assert_close(found.accuracy, (logits.argmax(-1) == y).double().mean(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("variant", VARIANTS)
def test_numpy_integers_and_half_precision_are_accepted(variant, dtype):
    four, sizes = np.int64(4), {k: np.int64(v) for k, v in SIZES.items() if k != "dtype"}
    model = SkipMLP(four, variant, replicas=np.int32(2), seed=np.int64(3), dtype=dtype, **sizes)
    plain = SkipMLP(4, variant, replicas=2, seed=3, **SIZES)
    x, y = torch.randn(9, 6), torch.randint(3, (9,))
    assert model(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(
        model(x.to(dtype)).double(), plain(x), rtol=0, atol=10 * torch.finfo(dtype).eps
    )
    gradients, _ = matrix_gradients(model, x.to(dtype), y)
    assert all(g.isfinite().all() and g.dtype == dtype for g in gradients.values())
    assert (
        evaluate(model, x.to(dtype), y, "recalibrated", calibration=x.to(dtype))
        .loss.isfinite()
        .all()
    )


def test_without_normalisation_the_statistics_make_no_difference():
    model = SkipMLP(5, "plain", replicas=2, **SIZES)
    x, y = torch.randn(10, 6), torch.randint(3, (10,))
    one, two = (evaluate(model, x, y, s, calibration=x) for s in ("batch", "recalibrated"))
    torch.testing.assert_close(one, two)


def test_bad_calls_name_the_remedy():
    with pytest.raises(ValueError, match="use one of plain, batch, skip"):
        SkipMLP(5, "resnet")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        SkipMLP(1)
    with pytest.raises(ValueError, match="replicas must be at least 1"):
        SkipMLP(3, replicas=0)
    model = SkipMLP(3, replicas=2, **SIZES)
    for shape in ((4, 5), (3, 4, 6)):
        with pytest.raises(ValueError, match=r"or \(2, n, 6\).*flatten images first"):
            model(torch.randn(shape))
    x, y = torch.randn(4, 6), torch.randint(3, (4,))
    with pytest.raises(ValueError, match="use one of batch, running, recalibrated"):
        evaluate(model, x, y, "eval")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate(model, x, y, "batch", batch_size=0)
    with pytest.raises(ValueError, match="pass calibration="):
        evaluate(model, x, y, "recalibrated")
