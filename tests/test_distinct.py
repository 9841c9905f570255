"""Forecasts of what stays distinct: products of matrices, wide networks, single gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from bnmlp.measurements.blocks import nonlinear_share, stream_differences
from bnmlp.networks.residual import ResidualMLP, mixing_matrices, sinkhorn
from bnmlp.theory.distinct import (
    elementwise_shares,
    late_forecast,
    mixing_exponents,
    stream_shares,
)
from bnmlp.theory.gaussian import gaussian_mean, relu_kernel

WIDTH = 64


def exponents(matrices):
    """Logarithms of the singular values of products over their length, by QR. ``(R, S)``."""
    q = torch.eye(matrices.shape[-1], dtype=torch.float64).expand_as(matrices[0])
    logs = torch.zeros(matrices.shape[1:3], dtype=torch.float64)
    for a in matrices:
        q, r = torch.linalg.qr(a @ q)
        logs += r.diagonal(dim1=-2, dim2=-1).abs().log()
    return logs / len(matrices)


@pytest.mark.parametrize("streams", [2, 4])
def test_free_mixing_grows_as_its_exponents_say(streams):
    t, runs, depth = 0.2, 60, 300
    a = torch.stack([mixing_matrices("hyper", depth, streams, t, 0, r) for r in range(runs)], 1)
    found, expected = exponents(a), mixing_exponents(streams, t)
    errors = (found.mean(0) - expected) / (found.std(0) / runs**0.5)
    assert errors.abs().max() < 4, errors.tolist()
    assert (expected[0] > 0) == (streams > 2)
    away = (found.mean(0) - expected.flip(0)).abs()[0] / (found.std(0)[0] / runs**0.5)
    assert away > 8, "the control: the order reversed"


def test_doubly_stochastic_mixing_shrinks_differences_by_its_determinant():
    a = torch.stack([mixing_matrices("mixed", 300, 4, 0.2, 0, r) for r in range(9)], 1)
    a = sinkhorn(a, 400)
    rates = exponents(a)[:, 1:].mean(0) - math.log(2) / 300 / 3  # the first vector turns to ones
    expected = torch.linalg.slogdet(a)[1].mean() / 3
    assert (rates - expected).abs().max() < 0.03 * -expected
    assert rates.mean().item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("scheme", ["hyper", "mixed"])
def test_streams_of_networks_differ_by_their_shares(scheme):
    depth, runs = 12, 24
    net = ResidualMLP(depth, scheme, in_features=WIDTH, width=WIDTH, replicas=runs, mixing=0.3)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        assert stream_differences(net, torch.randn(5, WIDTH)).max() > -1
        net.stream_write += 0.5 * torch.randn(net.stream_write.shape, generator=source)
    a = net.stream_mix.detach()
    expected = stream_shares(sinkhorn(a) if scheme == "mixed" else a, net.stream_write.detach())
    found = stream_differences(net, torch.randn(5, WIDTH, generator=source))
    assert found.shape == (depth + 1, runs)
    assert found[0].max() < 1e-12
    torch.testing.assert_close(found.mean(1)[1:], expected.mean(1)[1:], rtol=0.12, atol=0)
    one = ResidualMLP(2, "pre", in_features=WIDTH, width=WIDTH)
    assert stream_differences(one, torch.randn(5, WIDTH)).max() == 0


def test_shares_of_streams_are_those_of_vectors_put_together():
    a, b = torch.rand(3, 4, 4).double(), torch.randn(3, 4).double()
    x = torch.eye(4, dtype=torch.float64)[0].expand(4, 4).clone()  # 4 features, one for each source
    for i in range(3):
        x = a[i] @ x
        x[:, i + 1] += b[i]
    away = x - x.mean(0)
    expected = away.square().sum() / x.square().sum()
    torch.testing.assert_close(stream_shares(a, b)[-1], expected)


@pytest.mark.parametrize("scheme", ["late", "centred"])
def test_samples_align_as_forecast(scheme):
    depth, runs = 40, 16
    net = ResidualMLP(depth, scheme, matrices=3, activation="silu", in_features=WIDTH, width=WIDTH,
                      replicas=runs)  # fmt: skip
    x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        h = torch.stack([*net.streams(x)]).double()
    cosine = F.cosine_similarity(h[:, :, 0], h[:, :, 1], dim=-1)
    found = late_forecast(depth, cosine[0].mean().item(), matrices=3, centred=scheme == "centred")
    torch.testing.assert_close(h.square().mean((1, 2, 3)), found.square, rtol=0.1, atol=0)
    torch.testing.assert_close((1 - cosine).mean(1), 1 - found.cosine, rtol=0.15, atol=0)
    other = late_forecast(depth, 0.0, matrices=3, centred=scheme == "late")
    assert not 0.5 < (1 - found.cosine[-1]) / (1 - other.cosine[-1]) < 2, "the control"


def test_late_forecasts_in_closed_form():
    mean, energy = gaussian_mean(F.relu), 0.5
    found = late_forecast(5, 0.2, activation="relu", matrices=1)
    expected = 1 + 5 * energy + 20 * mean**2
    assert found.square[-1].item() == pytest.approx(expected)
    k = relu_kernel(torch.tensor([[1, 0.2], [0.2, 1]], dtype=torch.float64))[0, 1].item()
    assert found.cosine[1].item() == pytest.approx((0.2 + k) / 1.5, abs=1e-4)
    assert late_forecast(5, 1.0).cosine.min() == pytest.approx(1)
    with pytest.raises(ValueError, match="matrices must be a positive"):
        late_forecast(5, 0.0, matrices=0)


@pytest.mark.parametrize(("norm", "phi"), [("dyt", lambda x: torch.tanh(x / 2)),
                                           ("derf", lambda x: torch.erf(x / 2))])  # fmt: skip
def test_squared_gradients_without_norms_are_the_shares(norm, phi):
    depth, width, runs = 6, 256, 8
    net = ResidualMLP(depth, "pre", norm=norm, in_features=width, width=width, replicas=runs)
    logit = net(torch.randn(1, width))[:, 0, 0].sum()
    (blocks,) = torch.autograd.grad(logit, [net.hidden_weight])
    outer = blocks.double().square().sum((-2, -1)).unflatten(0, (depth, 2)).mean(-1)[:, 1]
    row = net.output_weight[:, 0].double().square().sum(-1).mean()
    errors = (outer / (row * width * elementwise_shares(phi, depth) / 2)).log()
    assert errors.abs().max() < 0.3, errors.tolist()
    assert abs(errors.mean()) < 0.15, errors.mean()


def test_blocks_that_end_with_an_activation_have_no_linear_share():
    net = ResidualMLP(2, "late", in_features=5, width=6)
    with pytest.raises(ValueError, match="end with an activation"):
        nonlinear_share(net, net.hidden_weight.detach(), torch.randn(3, 5))
