import math

import pytest
import torch
import torch.nn.functional as F

from bnmlp.theory.evaluation import evaluation_spread
from bnmlp.theory.gaussian import gaussian_mean
from bnmlp.theory.meanfield import running_spread

pytestmark = pytest.mark.usefixtures("float64")


def identity(x):
    return x


@pytest.mark.parametrize("activation", ["identity", "tanh", "sin"])
def test_without_offsets_odd_activations_follow_running_spread(activation):
    depth, n, t, gain = 30, 20, 12, 0.7
    expected = running_spread(depth, activation, gain=gain, steps=t, batch_size=n)
    sigma = {"identity": identity, "tanh": torch.tanh, "sin": torch.sin}[activation]
    seen = gaussian_mean(lambda x: sigma(gain * x).square())
    memory = 0.9**t
    ratios = [v / (memory + (1 - memory) * n / (n - 1) * v) for v in [1.0] + [seen] * (depth - 1)]
    found = evaluation_spread(ratios, [0.0] * depth, [lambda x: sigma(gain * x)] * depth)
    after = found[1:, 0] / torch.tensor([*ratios[1:], 1.0])  # behind the activation
    torch.testing.assert_close(0.5 * after.log(), expected, atol=2e-3, rtol=1e-3)
    assert found[:, 1].abs().max() < 1e-12  # nothing gives an odd function an offset


def test_relu_follows_the_law_of_its_mean_square():
    ratios = [1.03] * 40
    found = evaluation_spread(ratios, [0.0] * 40, [F.relu] * 40)
    q, expected = 1.0, []
    for i, r in enumerate(ratios):
        q = r * (1.0 if i == 0 else math.pi / (math.pi - 1) * (q + (1 - 2 * q**0.5) / math.pi))
        expected.append(q)
    torch.testing.assert_close(found[:-1].sum(1), torch.tensor(expected), rtol=0.05, atol=0)
    assert found[-1, 0] > 3, "the control is below: without errors nothing grows"
    rest = evaluation_spread([1.0] * 40, [0.0] * 40, [F.relu] * 40)
    torch.testing.assert_close(rest, torch.tensor([[1.0, 0.0]] * 41), atol=1e-9, rtol=0)


def simulated(activation, ratios, offsets, weights, biases, width=1000, n=100):
    """A wide random network in training and in evaluation with errors in its statistics."""
    trained = evaluated = torch.randn(width, n)
    rows = []
    for r, delta, weight, bias in zip(ratios, offsets, weights, biases, strict=True):
        mean, var = trained.mean(1, keepdim=True), trained.var(1, correction=0, keepdim=True)
        fixed = var / r
        shift = (delta * fixed).sqrt() * torch.randn(width, 1)
        normal = (evaluated - mean + shift) / fixed.sqrt()
        rows.append((normal.var(1, correction=0).mean(), normal.mean(1).square().mean()))
        channel = torch.arange(width) % len(weight)
        scale, add = weight[channel, None], bias[channel, None]
        trained = activation(scale * (trained - mean) / var.sqrt() + add)
        evaluated = activation(scale * normal + add)
        w = torch.randn(width, width) / width**0.5
        trained, evaluated = w @ trained, w @ evaluated
    return torch.tensor(rows)


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh, F.gelu, torch.sigmoid])
def test_a_wide_network_does_what_the_recursion_says(activation):
    depth = 6
    ratios, offsets = [0.8, 1.1, 1.3, 0.9, 1.2, 1.1], [0.05, 0.0, 0.3, 0.02, 0.1, 0.0]
    weights = [torch.linspace(0.5, 3.0, 5)] * depth
    biases = [torch.tensor([0.9, -0.6, 0.0, 1.5, -1.2])] * depth
    found = evaluation_spread(ratios, offsets, [activation] * depth, weights, biases)
    expected = simulated(activation, ratios, offsets, weights, biases)
    torch.testing.assert_close(found[:-1], expected, rtol=0.08, atol=0.01)
    if activation is torch.relu:
        return  # scales and biases change little here
    plain = evaluation_spread(ratios, offsets, [activation] * depth)
    errors = [(rows[:-1] - expected).norm() for rows in (found, plain)]
    assert errors[1] > 2 * errors[0], "the control: scales and biases count"


def test_lengths_that_differ_are_refused():
    for arguments in (([], [], []), ([1.0], [], [identity]), ([1.0], [0.0], [])):
        with pytest.raises(ValueError, match="one of each for every layer"):
            evaluation_spread(*arguments)


def by_hand(activation, w, p, weight, bias):
    """Variance and squared offset behind one activation, channel by channel, on a fine grid."""
    z = torch.arange(-8, 8, 0.01)
    density = 0.01 * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    xi, share = z[::16], 16 * density[::16]
    within, between, variance = 0.0, 0.0, 0.0
    for scale, shift in zip(weight.tolist(), bias.tolist(), strict=True):
        alone = activation(scale * z + shift)
        middle = alone @ density
        variance += (alone - middle).square() @ density
        for one, part in zip(xi, share, strict=True):
            seen = activation(scale * (math.sqrt(p) * one + math.sqrt(w) * z) + shift)
            mean = seen @ density
            within += part * ((seen - mean).square() @ density)
            between += part * (mean - middle).square()
    return within / variance, between / variance


@pytest.mark.parametrize("activation", [torch.tanh, F.gelu, F.relu, lambda x: torch.tanh(9 * x)])
@pytest.mark.parametrize("w", [0.6, 2.5])
def test_each_channel_counts_with_its_own_scale_and_offset(activation, w):
    weight, bias = torch.tensor([0.5, 1.0, 1.0, -1.5]), torch.tensor([0.3, 0.0, 0.0, -0.4])
    found = evaluation_spread([w], [0.2], [activation], [weight], [bias])
    expected = by_hand(activation, w, 0.2, weight, bias)
    rtol = 1e-3 if activation is F.relu else 1e-6
    torch.testing.assert_close(found[-1], torch.stack(expected), rtol=rtol, atol=0)
