import decimal
import math
import os
import subprocess
import sys
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnmlp import (
    batch_norm,
    degenerate_batch,
    haar_orthogonal,
    harmonic_gap,
    isometry_gap,
    numerical_rank,
    orthogonality_gap,
)
from bnmlp.measurements.isometry import _gap_by_singular_values

pytestmark = pytest.mark.usefixtures("float64")


def with_spectrum(s, n):
    """A (d, n) matrix with singular values ``s``."""
    s = torch.as_tensor(s, dtype=torch.float64)
    d = len(s)
    left, right = haar_orthogonal(d=d), haar_orthogonal(d=n)
    return left @ torch.diag(s) @ right[:d]


def exact_gap(s):
    """The definition in fifty digits."""
    with decimal.localcontext(prec=50):
        energy = [Decimal(v) ** 2 for v in s]
        mean = sum(energy) / len(energy)
        return float(mean.ln() - sum(e.ln() for e in energy) / len(energy))


@pytest.mark.parametrize("d", [2, 5, 40])
@pytest.mark.parametrize("condition", [1 + 1e-6, 1.5, 1e2, 1e5, 1e8])
def test_equals_its_definition_to_nine_digits(d, condition):
    s = torch.logspace(0, -math.log10(condition), d)
    x = with_spectrum(s, d + 3)
    expected = exact_gap(s.tolist())
    # A product of matrices carries the rounding of its making; a diagonal matrix is exact.
    assert isometry_gap(torch.diag(s)).item() == pytest.approx(expected, rel=1e-9)
    rounding = 1e-9 if condition > 2 else 1e-7
    assert isometry_gap(x).item() == pytest.approx(expected, rel=rounding)


@pytest.mark.parametrize("n", [30, 33])
@pytest.mark.parametrize("condition", [1 + 1e-6, 1.0003, 1.001, 1.003, 1.1, 3.0, 1e3, 1e6, 1e8])
def test_elimination_and_singular_values_agree(n, condition):
    x = torch.stack([with_spectrum(torch.logspace(0, -math.log10(condition), 30), n)] * 3)
    x[1, 0] *= 1e6  # badly scaled rows are no obstacle
    x[2, :, 0] *= 1e-6
    torch.testing.assert_close(isometry_gap(x), _gap_by_singular_values(x), rtol=1e-9, atol=1e-16)


@given(
    d=st.integers(1, 6),
    extra=st.integers(0, 4),
    scale=st.floats(1e-150, 1e150),
    seed=st.integers(0, 2**16),
)
def test_is_not_negative_and_blind_to_scale_and_rotation(d, extra, scale, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(d, d + extra, generator=g, dtype=torch.float64)
    gap = isometry_gap(x)
    assert gap >= 0
    rotated = haar_orthogonal(d=d, generator=g, dtype=torch.float64) @ x
    torch.testing.assert_close(isometry_gap(scale * rotated), gap, rtol=1e-8, atol=1e-12)


THREADS = """
import torch
from bnmlp import isometry_gap
x = torch.randn(17, 512, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
squares = torch.linalg.svdvals(x).square()
expected = squares.mean(-1).log() - squares.log().mean(-1)
torch.testing.assert_close(isometry_gap(x), expected, rtol=1e-9, atol=0)
volume = torch.linalg.slogdet(x[:3])[1]  # what comes after it is right too
torch.testing.assert_close(2 * volume, 512 * squares[:3].log().mean(-1), rtol=1e-9, atol=0)
torch.set_num_threads(2)  # from here on MKL may split what is split already
torch.testing.assert_close(isometry_gap(x[:3]), expected[:3], rtol=1e-9, atol=0)
"""


def test_large_matrices_are_right_on_several_threads_and_leave_those_after_them_right():
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    command = [sys.executable, "-P", "-c", THREADS]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_is_zero_exactly_at_isometries():
    assert isometry_gap(3 * haar_orthogonal(d=7)[:4]).item() < 1e-28
    assert isometry_gap(torch.eye(5)).item() == 0
    assert isometry_gap(torch.diag(torch.tensor([1.0, 1.1]))).item() > 1e-3


def test_is_infinite_where_rows_are_dependent():
    x = torch.randn(6, 9)
    repeated, _ = degenerate_batch(torch.randn(9, 6), torch.zeros(9), 5)
    dependent = torch.cat([x[:5], x[:1] + x[1:2]])
    for bad in (torch.randn(6, 5), repeated.mT, dependent, torch.zeros(6, 9)):
        assert isometry_gap(bad).item() == math.inf
    assert isometry_gap(x).isfinite()


def test_float32_entries_are_taken_as_exact():
    x = torch.randn(50, 50, dtype=torch.float32)
    x[0] = x[1] + 1e-6 * x[2]
    assert isometry_gap(x).isfinite()
    assert isometry_gap(x) == isometry_gap(x.double())


@pytest.mark.parametrize("measure", [isometry_gap, orthogonality_gap, numerical_rank])
def test_batches_over_leading_axes(measure):
    x = torch.randn(3, 2, 4, 6)
    out = measure(x)
    assert out.shape == (3, 2)
    torch.testing.assert_close(out[1, 0], measure(x[1, 0]))


def test_normalising_a_rotated_normalised_matrix_obeys_the_exact_identity():
    # phi(BN(WX)) = phi(X) + mean log ||(WX)_i||^2 for X = BN(.) and orthogonal W.
    for d, n in ((3, 3), (20, 20), (12, 30)):
        x = batch_norm(torch.randn(40, d, n), center=False, unit=True, eps=0.0)
        y = haar_orthogonal(40, d=d) @ x
        after = isometry_gap(batch_norm(y, center=False, unit=True, eps=0.0))
        predicted = isometry_gap(x) + y.square().sum(-1).log().mean(-1)
        error = (after - predicted).abs().max().item()
        assert error < 1e-12, f"identity violated by {error:.1e} at d={d}, n={n}"


def test_orthogonality_gap_equals_its_definition():
    x = torch.randn(2, 5, 3)
    gram = x @ x.mT
    share = gram / gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    expected = torch.linalg.matrix_norm(share - torch.eye(5) / 5)
    torch.testing.assert_close(orthogonality_gap(x), expected)
    assert orthogonality_gap(2 * torch.eye(4)) < 1e-15


@given(d=st.integers(1, 8), n=st.integers(1, 8), rank=st.integers(0, 8), seed=st.integers(0, 999))
def test_rank_of_a_product_is_its_inner_size(d, n, rank, seed):
    rank = min(rank, d, n)
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(d, rank, generator=g, dtype=torch.float64)
    b = torch.randn(rank, n, generator=g, dtype=torch.float64)
    assert numerical_rank(a @ b) == rank


@pytest.mark.parametrize("measure", [isometry_gap, orthogonality_gap, numerical_rank])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(3), "features on the rows"),
        (torch.ones(3, 0), "non-empty"),
        (torch.tensor([[1.0, math.nan]]), "1 of 2 values are not finite"),
        (torch.tensor([[1.0, math.inf]]), "not finite"),
        (torch.ones(2, 2, dtype=torch.complex128), "real"),
    ],
)
def test_bad_input_names_cause_and_remedy(measure, x, message):
    with pytest.raises(ValueError, match=message):
        measure(x)


def test_orthogonality_gap_of_zero_is_refused():
    with pytest.raises(ValueError, match="zeros"):
        orthogonality_gap(torch.zeros(2, 2))


@given(d=st.integers(2, 9), extra=st.integers(0, 4), condition=st.floats(0.1, 6))
def test_harmonic_gap_is_arithmetic_over_harmonic_mean_less_one(d, extra, condition):
    s = torch.logspace(0, -condition, d)
    expected = (s**2).mean() * (1 / s**2).mean() - 1
    x = 3 * with_spectrum(s, d + extra)
    torch.testing.assert_close(harmonic_gap(x), expected, rtol=1e-7, atol=0)
    assert harmonic_gap(x) >= isometry_gap(x)


def test_harmonic_gap_keeps_digits_near_isometry_and_is_infinite_below_full_rank():
    e = 1e-9 * torch.tensor([1.0, -1.0, 2.0, -2.0])
    assert harmonic_gap(torch.diag((1 + e).sqrt())).item() == pytest.approx(2.5e-18, rel=1e-5)
    assert harmonic_gap(torch.ones(3, 5)) == torch.inf
    assert harmonic_gap(torch.randn(2, 4, 3)).tolist() == [torch.inf] * 2
    with pytest.raises(ValueError, match="harmonic_gap: 1 of 4 values are not finite"):
        harmonic_gap(torch.tensor([[1.0, torch.nan], [0, 1]]))
