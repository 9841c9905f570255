"""Forecasts of residual networks: closed forms, and twenty networks of width 64."""

import math

import pytest
import torch

from bnmlp.networks.residual import ResidualMLP
from bnmlp.theory.gaussian import relu_kernel
from bnmlp.theory.meanfield import chi, length_map, residual_recursion
from bnmlp.theory.residual import (
    block_shares,
    branch_kernel,
    branch_slope,
    forecast,
    squared_doses,
)

WIDTH, RUNS = 64, 20


def test_total_doses_in_closed_form():
    harmonic = sum(1 / k for k in range(1, 301))
    for scheme, exponent, growth in (
        ("pre", 0.0, 301), ("pre", 0.5, 2), ("pre", 1.0, 1 + 1 / 300), ("peri", 0.0, 301),
        ("scaled", 0.0, 1 + harmonic), ("post", 0.0, 2.0**300), ("keel", 0.0, (1 + 300**-2) ** 300),
    ):  # fmt: skip
        total = squared_doses(scheme, 300, exponent).log1p().sum().item()
        assert total == pytest.approx(math.log(growth), rel=1e-9)


def test_closed_forms_with_relu():
    pre = forecast("pre", 1000)
    assert pre.stream.exp()[[0, -1]].tolist() == pytest.approx([1, 1001**0.5])
    torch.testing.assert_close(pre.gradient[0], pre.stream[-1])
    torch.testing.assert_close(pre.dose[-1], torch.tensor(1000**-0.5, dtype=torch.float64))
    post = forecast("post", 1000)
    assert post.gradient.abs().max() == 0
    assert post.dose.unique().tolist() == pytest.approx([(2 - 2**0.5) ** 0.5])
    keel = forecast("keel", 1000)
    assert keel.dose[0].item() == pytest.approx(1e-3, rel=1e-3)


def test_small_steps_grow_by_the_dose_times_the_slope():
    slope = branch_slope("tanh")
    assert slope == pytest.approx(chi("tanh", 1.0, 1.0) / length_map("tanh", 1.0, 1.0))
    found = forecast("pre", 400, activation="tanh", exponent=0.5)
    assert found.gradient[0].item() == pytest.approx(slope * math.log(2) / 2, rel=1e-3)
    assert forecast("pre", 400, exponent=0.5).gradient[0].item() == pytest.approx(math.log(2) / 2)


def test_the_recursion_without_norm_is_the_one_with_it_where_lengths_are_one():
    lengths, growth = residual_recursion("relu", [1e-6], branch_variance=2.0)
    dose = squared_doses("pre", 1, 0.0).item()
    assert lengths[1].item() - 1 == pytest.approx(1e-6 * dose)
    assert growth[0].item() == pytest.approx(0.5 * 1e-6 * branch_slope("relu"), rel=1e-5)


def test_kernels_of_blocks():
    c = torch.tensor([[1.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
    assert branch_kernel("relu", 0.3) == pytest.approx(2 * relu_kernel(c)[0, 1].item())
    assert branch_kernel("tanh", 0.0) == pytest.approx(0, abs=1e-12)
    for name in ("identity", "relu", "tanh"):
        assert branch_kernel(name, 1.0) == pytest.approx(1, abs=1e-6)
    falling = forecast("pre", 50, activation="tanh", cosine=0.5).cosine
    rising = forecast("pre", 50, activation="relu", cosine=0.5).cosine
    assert falling[-1] < 0.5 < rising[-1]


def measured(scheme, depth, seed=0, runs=RUNS, samples=2, **options):
    """Log root mean squares, log gradients over the last, and cosines of two samples."""
    net = ResidualMLP(
        depth, scheme, in_features=WIDTH, width=WIDTH, replicas=runs, seed=seed, **options
    ).requires_grad_(False)
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(runs, samples, WIDTH, generator=source).requires_grad_()
    streams = list(net.streams(x))
    probe = torch.randn(streams[-1].shape, generator=source)
    end = (net.normalize(depth, streams[-1]) * probe).sum()
    g = torch.stack(torch.autograd.grad(end, streams)).double().norm(dim=-1)
    h = torch.stack(streams).detach().double()
    cosines = torch.nn.functional.cosine_similarity(h[:, :, 0], h[:, :, 1], dim=-1)
    return h.norm(dim=-1).log() - math.log(WIDTH) / 2, (g / g[-1]).log(), cosines


def errors(values, mean, spread):
    """Deviation of a mean over networks in standard errors, and ratio of spreads."""
    values = values[:, 0]  # the first sample of each network
    return ((values.mean() - mean) / spread * RUNS**0.5).item(), (values.std() / spread).item()


CASES = [
    ("pre", 200, {}), ("pre", 50, {"norm": "rms", "activation": "tanh"}),
    ("pre", 100, {"exponent": 0.5}), ("pre", 50, {"exponent": 1.0}), ("scaled", 100, {}),
    ("peri", 50, {}), ("post", 100, {}), ("post", 20, {"activation": "tanh"}), ("keel", 50, {}),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "depth", "options"), CASES)
def test_twenty_networks_of_width_64_do_as_forecast(scheme, depth, options):
    streams, gradients, _ = measured(scheme, depth, **options)
    found = forecast(scheme, depth, width=WIDTH, **options)
    middle = depth // 2
    for layer in (0, middle):
        z, ratio = errors(gradients[layer], found.gradient[layer], found.gradient_spread[layer])
        assert abs(z) < 4, f"gradient at {layer}: {z:.1f} standard errors"
        assert 0.4 < ratio < 1.8, f"spread of gradients at {layer}: {ratio:.2f} of the forecast"
    for layer in (middle, depth):
        if scheme in ("post", "keel"):
            assert streams[layer].abs().max() < 1e-3
            continue
        z, ratio = errors(streams[layer], found.stream[layer], found.stream_spread[layer])
        assert abs(z) < 4, f"stream at {layer}: {z:.1f} standard errors"
        assert 0.4 < ratio < 1.8, f"spread of streams at {layer}: {ratio:.2f} of the forecast"


def test_the_control_the_forecast_of_another_scheme_fails():
    _, gradients, _ = measured("pre", 50)
    for other, exponent in (("scaled", 0.0), ("pre", 0.5), ("keel", 0.0)):
        found = forecast(other, 50, width=WIDTH, exponent=exponent)
        z, _ = errors(gradients[0], found.gradient[0], found.gradient_spread[0])
        assert abs(z) > 20, f"{other}: {z:.1f}"
    found = forecast("post", 50, width=WIDTH)
    _, ratio = errors(gradients[0], found.gradient[0], found.gradient_spread[0])
    assert ratio < 0.5, "post-norm networks of finite width spread much farther"


@pytest.mark.parametrize(("scheme", "exponent"), [("pre", 0.0), ("pre", 0.5), ("scaled", 0.0),
                                                  ("post", 0.0), ("keel", 0.0)])  # fmt: skip
def test_samples_come_together_as_forecast(scheme, exponent):
    depth = 20 if scheme == "post" else 100
    _, _, cosines = measured(
        scheme, depth, runs=4 * RUNS if depth == 20 else RUNS, exponent=exponent
    )
    start = cosines[0].mean().item()
    expected = forecast(scheme, depth, cosine=start, exponent=exponent).cosine[-1]
    error = cosines[-1].std() / len(cosines[-1]) ** 0.5
    assert abs(cosines[-1].mean() - expected) < 4 * error + 0.01


def test_steps_are_the_doses():
    for scheme, exponent in (
        ("pre", 0.0),
        ("pre", 0.5),
        ("peri", 0.0),
        ("post", 0.0),
        ("keel", 0.0),
    ):
        net = ResidualMLP(30, scheme, in_features=WIDTH, width=WIDTH, replicas=RUNS,
                          exponent=exponent)  # fmt: skip
        with torch.no_grad():
            h = torch.stack(list(net.streams(torch.randn(8, WIDTH))))
        steps = (h[1:] - h[:-1]).norm(dim=-1) / h[:-1].norm(dim=-1)
        found = forecast(scheme, 30, exponent=exponent).dose
        torch.testing.assert_close(steps.mean((1, 2)).double(), found, rtol=0.12, atol=0)


def test_a_forecast_that_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="unknown scheme 'plain'"):
        forecast("plain", 10)
    with pytest.raises(ValueError, match="unknown norm"):
        forecast("pre", 10, norm="none")
    with pytest.raises(ValueError, match="'scaled' needs one of identity"):
        forecast("scaled", 10, activation="tanh")
    with pytest.raises(ValueError, match="depth must be a positive integer"):
        forecast("pre", 0)
    with pytest.raises(ValueError, match="width must be a positive integer"):
        forecast("pre", 10, width=0)


SHARED = [("pre", 0.0), ("pre", 0.5), ("scaled", 0.0), ("peri", 0.0), ("post", 0.0), ("keel", 0.0)]


@pytest.mark.parametrize(("scheme", "exponent"), SHARED)
def test_squared_gradients_of_a_logit_are_the_shares(scheme, exponent):
    depth, width, runs = 6, 256, 8
    net = ResidualMLP(depth, scheme, in_features=width, width=width, replicas=runs,
                      exponent=exponent)  # fmt: skip
    logit = net(torch.randn(1, width))[:, 0, 0].sum()
    (blocks,) = torch.autograd.grad(logit, [net.hidden_weight])
    squares = blocks.double().square().sum((-2, -1)).unflatten(0, (depth, 2)).mean(-1)
    row = net.output_weight[:, 0].double().square().sum(-1).mean()
    shares = row * width * block_shares(scheme, depth, exponent)
    # A ReLU halves squares: of what the outer matrix is given, not of what reaches the inner one.
    for name, found, expected in (
        ("inner", squares[:, 0], shares),
        ("outer", squares[:, 1], shares / 2),
    ):
        errors = (found / expected).log()
        assert errors.abs().max() < 0.3, f"{name}: {errors.tolist()}"
        assert abs(errors.mean()) < 0.15, f"{name}: {errors.mean():.2f}"


def test_the_control_shares_of_schemes_differ():
    totals = {(s, e): block_shares(s, 64, e).sum().item() for s, e in SHARED}
    assert totals["post", 0.0] == 32
    assert totals["pre", 0.0] == pytest.approx(sum(1 / k for k in range(2, 66)))
    assert totals["pre", 0.5] == pytest.approx(math.log(2), abs=0.01)
    assert totals["keel", 0.0] == pytest.approx(1 / 64, rel=1e-3)
