"""Curvature and noise of small networks as matrices, and curvature in other units."""

import pytest
import torch

from bnmlp import BNMLP
from bnmlp.measurements.curvature import hessian, row_lengths, scaled_largest
from bnmlp.measurements.noise import sample_gradients
from bnmlp.measurements.overlaps import (
    dense,
    leading_vectors,
    matrix_cosine,
    noise_alignment,
    subspace_overlap,
    trace_estimate,
)


def small(**options):
    model = BNMLP(6, 5, 2, 3, activation="tanh", dtype=torch.float64, **options)
    x, y = torch.randn(12, 6, dtype=torch.float64), torch.randint(3, (12,))
    return model, x, y


def test_spaces_overlap_by_the_share_of_directions_that_they_have_in_common():
    a = torch.eye(6)[:, :3]
    assert subspace_overlap(a, a.flip(1)) == 1
    assert subspace_overlap(a, torch.eye(6)[:, 3:]) == 0
    assert subspace_overlap(a, torch.eye(6)[:, 2:5]) == pytest.approx(1 / 3)
    matrix = torch.diag(torch.tensor([3.0, -9.0, 5.0, 1.0]))
    assert leading_vectors(matrix, 2).abs().sum(1).tolist() == [1, 0, 1, 0]


def test_cosines_of_matrices_do_not_see_their_size():
    a, b = torch.randn(2, 4, 4, dtype=torch.float64)
    assert matrix_cosine(a, 3 * a) == pytest.approx(1)
    assert matrix_cosine(a, -b) == pytest.approx(-matrix_cosine(a, b))


def test_the_trace_of_many_signs_is_that_of_the_matrix():
    model, x, y = small(norm="none")
    operator = hessian(model, [(x, y)])
    found = dense(operator, columns=7)
    assert torch.allclose(found, found.mT, atol=1e-10)
    estimate = trace_estimate(operator, 4000, torch.Generator().manual_seed(0))
    off = (found - found.diag().diag()).square().sum().mul(2).sqrt().item()  # of one vector
    assert abs(estimate - found.trace().item()) < 4 * off / 4000**0.5


def test_alignment_of_curvature_and_noise_agrees_with_its_definition():
    model, x, y = small(norm="none")
    found, h, top = noise_alignment(model, x, y, 2, torch.Generator().manual_seed(0))
    each = sample_gradients(model, x, y)
    centred = each - each.mean(0)
    assert found["trace_covariance"] == pytest.approx(centred.square().sum().item() / 12)
    assert found["gradient"] == pytest.approx(each.mean(0).norm().item())
    assert found["noise_share"] == pytest.approx(
        ((centred @ top).square().sum() / centred.square().sum()).item()
    )
    assert torch.allclose(h @ top[:, -1], found["sharpness"] * top[:, -1])
    assert -1 <= found["cosine"] <= 1


@pytest.mark.parametrize("rows", [False, True])
def test_the_largest_eigenvalue_in_units_is_that_of_the_scaled_matrix(rows):
    model, x, y = small()
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    units = row_lengths(model) if rows else (row_lengths(model) > 0).double()
    scaled = units[:, None] * dense(hessian(model, batches)) * units
    expected = torch.linalg.eigvalsh(scaled)[-1].item()
    assert scaled_largest(model, batches, 1e-8, units=units).item() == pytest.approx(expected)
    with torch.no_grad():
        model.hidden_weight *= 3.0
    moved = row_lengths(model) if rows else units
    again = scaled_largest(model, batches, 1e-8, units=moved).item()
    assert (again == pytest.approx(expected, rel=1e-3)) == rows, "rescaling shows without units"
