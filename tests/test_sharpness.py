"""Curvature of each of several networks, against dense matrices."""

import pytest
import torch

from bnmlp import BNMLP
from bnmlp.measurements.curvature import dense_hessian, row_lengths
from bnmlp.measurements.noise import gradient, sample_gradients
from bnmlp.measurements.parabola import local_parabola
from bnmlp.measurements.sharpness import hessian_traces, row_quantities, sharpness
from bnmlp.networks.replicas import subset

X, Y = torch.randn(12, 6, dtype=torch.float64), torch.randint(3, (12,))


def networks(norm="none", replicas=2):
    options = {"activation": "tanh", "dtype": torch.float64, "norm": norm}
    return BNMLP(6, 4, 2, 3, replicas=replicas, **options)


def matrices(model, batches):
    return [dense_hessian(subset(model, [r]), batches) for r in range(model.replicas)]


def test_sharpness_and_trace_are_those_of_each_network():
    model = networks()
    dense = matrices(model, [(X, Y)])
    largest = torch.stack([torch.linalg.eigvalsh(h)[-1] for h in dense])
    torch.testing.assert_close(sharpness(model, [(X, Y)], 1e-8), largest)
    generator = torch.Generator().manual_seed(0)
    found = hessian_traces(model, [(X, Y)], 4000, generator)
    traces = torch.stack([h.trace() for h in dense])
    spread = torch.stack([(2 * (h - h.diag().diag()).square().sum() / 4000).sqrt() for h in dense])
    assert ((found - traces).abs() < 5 * spread).all(), (found, traces, spread)


def test_rows_are_measured_in_each_network():
    model, batches = networks("batch"), [(X[:6], Y[:6]), (X[6:], Y[6:])]
    table = row_quantities(model, batches, 1e-8).set_index(["replica", "quantity", "index"])
    for r, h in enumerate(matrices(model, batches)):
        one = subset(model, [r])
        units = row_lengths(one)
        for name, d in (("hessian_block", (units > 0).double()), ("hessian_rows", units)):
            largest = torch.linalg.eigvalsh(d[:, None] * h * d)[-1].item()
            assert table.loc[(r, name, 1), "value"] == pytest.approx(largest, rel=1e-6)
        for i, w in enumerate((one.input_weight, one.hidden_weight), 1):
            squared = w.norm(dim=-1).square().mean().item()
            assert table.loc[(r, "row_squared", i), "value"] == pytest.approx(squared)


def test_the_local_parabola_is_that_of_the_mean_loss():
    model = networks(replicas=1)
    h, slopes, noise = local_parabola(model, X, Y)
    dense = dense_hessian(model, [(X, Y)])
    torch.testing.assert_close(h, torch.linalg.eigvalsh(dense))
    torch.testing.assert_close(slopes.norm(), gradient(model, X, Y).norm())
    bend = gradient(model, X, Y) @ dense @ gradient(model, X, Y)
    torch.testing.assert_close((h * slopes**2).sum(), bend)
    covariance = torch.cov(sample_gradients(model, X, Y).mT, correction=0)
    torch.testing.assert_close(noise.sum(), covariance.trace())
    torch.testing.assert_close((h * noise).sum(), (dense * covariance).sum())
