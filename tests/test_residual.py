"""Every residual scheme against loops over samples, and what the schemes have in common."""

import math

import numpy as np
import pytest
import torch

from bnmlp.networks.losses import matrix_gradients
from bnmlp.networks.residual import (
    FUNCTIONS,
    LATE,
    NORMS,
    SCHEMES,
    ResidualMLP,
    sinkhorn,
    unit_gain,
)
from bnmlp.theory.gaussian import gaussian_mean

pytestmark = pytest.mark.usefixtures("float64")
SIZES = {"in_features": 5, "width": 7, "out_features": 3, "dtype": torch.float64}
INCREMENTAL = [s for s in SCHEMES if s not in ("peri", "post", "keel", *LATE)]
CASES = [(s, n) for s in SCHEMES for n in NORMS if n in ("layer", "rms") or s in INCREMENTAL]


def network(scheme="pre", depth=4, replicas=2, **options):
    return ResidualMLP(depth, scheme, replicas=replicas, **SIZES | options)


def randomised(net):
    """Parameters none of which is what it is at first."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return net


class Twin:
    """One network of a stack and one sample, with loops."""

    def __init__(self, net, r):
        self.net, self.depth, self.norm = net, net.depth, net.norm
        axes = {k: net.replica_axis(k) for k, _ in net.named_parameters()}
        for name, value in net.named_parameters():
            setattr(self, name, value.detach().select(axes[name], r).numpy())

    def normal(self, i, x, norm=None):
        norm = norm or self.norm
        if norm == "none":
            return x
        if norm == "dyt":
            return np.tanh(self.norm_slope[i] * x)
        if norm == "derf":
            return np.array([math.erf(v) for v in self.norm_slope[i] * x + self.norm_shift[i]])
        x = x - x.mean() if norm == "layer" else x
        return x / math.sqrt((x**2).mean() + self.net.eps)

    def block(self, i, h):
        m = self.net.matrices
        if m == 2:
            h = self.hidden_weight[2 * i] @ h
        h = FUNCTIONS[self.net.activation](torch.tensor(h)).numpy()
        return self.hidden_weight[m * i + m - 1] @ h

    def late(self, i, x):
        for weight in self.hidden_weight[self.net.matrices * i : self.net.matrices * (i + 1)]:
            x = torch.tensor(self.normal(i, weight @ x))
            x = FUNCTIONS[self.net.activation](x).numpy()
        return self.depth**-0.5 * x

    def streams(self, i, x):
        a = np.array(self.stream_mix[i])
        if self.net.scheme == "mixed":
            a = np.exp(a)
            for _ in range(20):
                a = a / a.sum(0)
                a = a / a.sum(1)[:, None]
        read = sum(m * row for m, row in zip(self.stream_read[i], x, strict=True))
        added = self.net.depth**-0.5 * self.block(i, self.normal(i, read))
        rows = []
        for s, b in enumerate(self.stream_write[i]):
            rows.append(sum(a[s, t] * x[t] for t in range(len(x))) + b * added)
        return np.stack(rows)

    def step(self, i, x):
        root, n, block = self.depth**-0.5, self.normal, self.block
        match self.net.scheme:
            case "pre":
                return x + root * block(i, n(i, x))
            case "scaled":
                return x + root * block(i, n(i, x) / math.sqrt(i + 1))
            case "peri":
                return x + root * n(i, block(i, n(i, x)))
            case "post":
                return n(i, x + root * block(i, x))
            case "keel":
                return n(i, self.depth * x + root * block(i, n(i, x)))
            case "plain":
                return root * block(i, n(i, x))
            case "late":
                return x + self.late(i, x)
            case "centred":
                return x + self.late(i, x) - self.late(i, x).mean()
        return self.streams(i, x)

    def __call__(self, x):
        x = self.normal(0, self.input_weight @ x, "layer" if self.norm == "layer" else "rms")
        several = self.net.scheme in ("hyper", "mixed")
        x = np.stack([x] * 3) if several else x
        for i in range(self.depth):
            x = self.step(i, x)
        x = x.mean(0) if several else x
        return self.output_weight @ self.normal(self.depth, x)


@pytest.mark.parametrize("matrices", [1, 2])
@pytest.mark.parametrize(("scheme", "norm"), CASES)
def test_a_scheme_computes_what_loops_over_samples_do(scheme, norm, matrices):
    options = {"matrices": matrices, "norm": norm, "activation": "selu", "exponent": 0.5}
    net = randomised(network(scheme, streams=3, mixing=0.5, **options))
    x = torch.randn(2, 6, 5)
    expected = [[Twin(net, r)(v) for v in x[r].numpy()] for r in range(2)]
    torch.testing.assert_close(net(x).detach(), torch.tensor(np.array(expected)))


def test_doubly_stochastic_mixing_is_the_ordinary_residual_network_at_first():
    x = torch.randn(9, 5)
    pre = network("pre")(x)
    for mixing in (0.0, 0.5, 3.0):
        torch.testing.assert_close(network("mixed", mixing=mixing)(x), pre)
    torch.testing.assert_close(network("hyper", mixing=0.0)(x), pre)
    assert not torch.allclose(network("hyper", mixing=0.5)(x), pre), "the control: free mixing"
    apart = network("mixed", mixing=0.5)
    torch.nn.init.normal_(apart.stream_write)
    assert not torch.allclose(apart(x), pre), "the control: streams that take up different shares"


def test_mixing_matrices_are_doubly_stochastic_or_gain_as_they_say():
    net = network("mixed", depth=200, mixing=0.3)
    a = sinkhorn(net.stream_mix.detach())
    torch.testing.assert_close(a.sum(-1), torch.ones(200, 2, 4))
    torch.testing.assert_close(a.sum(-2), torch.ones(200, 2, 4), atol=0.01, rtol=0)
    more = sinkhorn(net.stream_mix.detach(), 400)
    torch.testing.assert_close(more.sum(-2), torch.ones(200, 2, 4), atol=1e-9, rtol=0)
    v = torch.tensor([1.0, -1.0, 0.0, 0.0])
    shrunk = (a @ v @ v / (v @ v)).mean().item()
    assert shrunk == pytest.approx(1 / 1.3, rel=0.02)
    free = network("hyper", depth=2000, mixing=0.3).stream_mix.detach()
    gain = (free @ v).square().sum(-1).mean() / (v @ v)
    assert gain.item() == pytest.approx(1.09, rel=0.01)


def test_keel_with_one_block_is_post_norm_and_peri_differs_from_pre():
    x = torch.randn(8, 5)
    torch.testing.assert_close(network("keel", depth=1)(x), network("post", depth=1)(x), rtol=1e-4,
                               atol=1e-5)  # fmt: skip
    assert not torch.allclose(network("keel", depth=2)(x), network("post", depth=2)(x), rtol=0.01)
    assert not torch.allclose(network("peri")(x), network("pre")(x), rtol=0.01)


def test_exponents_divide_blocks():
    x = torch.randn(8, 5)
    for scheme in ("pre", "peri", "scaled"):
        first, one = list(network(scheme, depth=9).streams(x))[:2]
        _, root = list(network(scheme, depth=9, exponent=0.5).streams(x))[:2]
        torch.testing.assert_close(root - first, (one - first) / 3)


def test_networks_depend_on_seed_and_number_alone():
    one, three, other = network(replicas=1), network(replicas=3), network(replicas=1, seed=1)
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    torch.testing.assert_close(one(x)[0], three(x)[0])
    assert not torch.allclose(three(x)[0], three(x)[1])
    assert not torch.allclose(one(x), other(x))
    alone, together = (matrix_gradients(net, x, y)[0] for net in (one, three))
    for name, gradient in alone.items():
        torch.testing.assert_close(gradient[0], together[name][0])


def test_orthogonal_weights_are_orthogonal_up_to_the_gain_behind_the_activation():
    w = network(init="orthogonal", activation="relu").hidden_weight.detach()
    torch.testing.assert_close(w[0::2] @ w[0::2].mT, torch.eye(7).expand(4, 2, 7, 7))
    torch.testing.assert_close(w[1::2] @ w[1::2].mT, 2 * torch.eye(7).expand(4, 2, 7, 7))


def test_late_blocks_have_any_number_of_matrices_whose_lengths_change_nothing():
    net, x = network("late", matrices=3, activation="silu", eps=0.0), torch.randn(2, 6, 5)
    before = net(x).detach()
    assert net.normalized() == [f"layer {i + 1}" for i in range(13)]
    with torch.no_grad():
        net.hidden_weight *= 3
    torch.testing.assert_close(net(x).detach(), before)
    other = network("late", matrices=3, activation="silu")
    with torch.no_grad():
        other.hidden_weight[2] += 0.1 * torch.randn(2, 7, 7)
    assert not torch.allclose(other(x), before, rtol=1e-3), "the third matrix is in use"


def test_streams_are_the_means_of_the_parallel_ones():
    x = torch.randn(2, 6, 5)
    net = randomised(network("hyper", streams=3, mixing=0.5))
    each = list(net.parallel_streams(x))
    assert each[0].shape == (2, 3, 6, 7)
    torch.testing.assert_close([h.mean(1) for h in each], list(net.streams(x)))
    assert not torch.allclose(each[-1][:, 0], each[-1][:, 1])
    pre = network("pre")
    torch.testing.assert_close([h[:, 0] for h in pre.parallel_streams(x)], list(pre.streams(x)))


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_unit_gains_make_activations_unit(activation):
    sigma = FUNCTIONS[activation]
    energy = gaussian_mean(lambda z: sigma(z).square())
    assert unit_gain(activation) ** 2 * energy == pytest.approx(1, rel=1e-6)


def test_a_gradient_behind_a_norm_has_no_part_along_a_homogeneous_post_norm_stream():
    net, x = network("post", eps=1e-14), torch.randn(2, 6, 5)
    streams = list(net.streams(x))
    end = net.normalize(4, streams[-1]) * torch.randn(2, 6, 7)
    found = torch.autograd.grad(end.sum(), streams)
    for h, g in zip(streams, found, strict=True):
        along = (h * g).sum(-1).abs() / (h.norm(dim=-1) * g.norm(dim=-1))
        assert along.max() < 1e-9, f"{along.max():.1e}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheme": "past"}, "unknown scheme 'past'; use one of pre"),
        ({"norm": "batch"}, "unknown norm 'batch'"),
        ({"activation": "swish"}, "unknown activation"),
        ({"init": "zero"}, "unknown init"),
        ({"matrices": 3}, "1 or 2 matrices, got 3"),
        ({"matrices": 0}, "at least 1"),
        ({"scheme": "late", "norm": "none"}, "use norm='layer' or 'rms'"),
        ({"mixing": -1.0}, "mixing must be"),
        ({"exponent": math.inf}, "exponent finite"),
        ({"width": 0}, "at least 1"),
        ({"scheme": "peri", "norm": "dyt"}, "use norm='layer' or 'rms'"),
    ],
)
def test_choices_that_do_not_fit_are_refused_in_words(options, words):
    with pytest.raises(ValueError, match=words):
        network(**options)


def test_samples_that_do_not_fit_are_refused_in_words():
    with pytest.raises(ValueError, match="flatten images first"):
        network()(torch.randn(3, 6))
    with pytest.raises(ValueError, match=r"\(n, 5\) or \(2, n, 5\)"):
        network()(torch.randn(3, 4, 5))
