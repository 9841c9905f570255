"""Singular values of Jacobians by products, against the matrix."""

import numpy as np
import pytest
import torch
from torch import nn

from bnmlp import measure
from bnmlp.diagnosis import jacobian
from bnmlp.diagnosis.jacobian import jacobian_spectra


def network(width=12):
    return nn.Sequential(
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, 5)
    ).double()


def matrix(function, x):
    found = torch.autograd.functional.jacobian(function, x)
    return found.reshape(-1, x.numel())


def test_all_singular_values_are_those_of_the_matrix():
    model, x = network(), torch.randn(6, 12, dtype=torch.float64)
    found = jacobian_spectra(model, x)
    s = torch.linalg.svdvals(matrix(model, x))
    np.testing.assert_allclose(found["model"].values, s, atol=1e-10)
    assert found["model"].exact and (found["model"].rows, found["model"].columns) == (30, 72)
    h = model[0](x).detach()
    norm = torch.linalg.svdvals(matrix(model[1], h))
    np.testing.assert_allclose(found["1"].values, norm, atol=1e-7)
    assert list(found) == ["model", "0", "1", "2", "3"]


def test_a_linear_layer_has_the_singular_values_of_its_weight():
    model, x = network(), torch.randn(4, 12, dtype=torch.float64)
    found = jacobian_spectra(model, x, ["0"])["0"]
    s = torch.linalg.svdvals(model[0].weight.detach()).repeat_interleave(4)
    np.testing.assert_allclose(found.values, s, atol=1e-10)


@pytest.mark.parametrize("rows", [5, 40])
def test_the_quadrature_has_the_moments_and_the_largest_value(rows, monkeypatch):
    monkeypatch.setattr(jacobian, "EXACT", 0)
    monkeypatch.setattr(jacobian, "STARTS", 40)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, rows)).double()
    x = torch.randn(7, 20, dtype=torch.float64)
    found = jacobian_spectra(model, x, [])["model"]
    s = torch.linalg.svdvals(matrix(model, x)).numpy()
    assert found.weights.sum() == pytest.approx(1)
    assert found.largest == pytest.approx(s[0], rel=1e-6)
    assert found.mean_square == pytest.approx((s**2).mean(), rel=0.1)
    fourth = (found.weights * found.values**4).sum()
    assert fourth == pytest.approx((s**4).mean(), rel=0.2)
    assert found.quantile(0.5) == pytest.approx(np.median(s), rel=0.2)


def test_one_start_sees_the_spectrum_exactly_where_all_values_are_one(monkeypatch):
    monkeypatch.setattr(jacobian, "EXACT", 0)
    model = nn.Linear(600, 600, bias=False).double()
    nn.init.orthogonal_(model.weight)
    found = jacobian_spectra(model, torch.randn(2, 600, dtype=torch.float64), [])["model"]
    assert found.largest == pytest.approx(1) and found.quantile(0) == pytest.approx(1)


def test_it_is_in_the_report_where_it_is_asked_for():
    model, x, y = network(), torch.randn(6, 12, dtype=torch.float64), torch.randint(5, (6,))
    report = measure(model, x, y, jacobian=["3"])
    assert list(report.jacobian) == ["model", "3"]
    assert "singular values of model" in str(report) and "Singular values" in report.to_html()
    assert measure(model, x, y).jacobian is None
    with pytest.raises(ValueError, match="no part is called"):
        measure(model, x, y, jacobian=["9"])
    with pytest.raises(ValueError, match="floating-point"):
        jacobian_spectra(nn.Embedding(5, 3), torch.tensor([1, 2]), [])
