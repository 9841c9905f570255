import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnmlp import batch_norm, layer_norm
from bnmlp.layers.normalization import unit_rows

pytestmark = pytest.mark.usefixtures("float64")


def naive(x, center, unit, eps):
    n = x.shape[-1]
    if center:
        x = x - x.mean(-1, keepdim=True)
    energy = (x * x).sum(-1, keepdim=True)
    if unit:
        return x / (energy + eps).sqrt()
    return x / (energy / n + eps).sqrt()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.3])
@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 4), (2, 3, 6, 2)])
def test_equals_its_definition_row_by_row(center, unit, eps, shape):
    x = torch.randn(shape)
    torch.testing.assert_close(
        batch_norm(x, center=center, unit=unit, eps=eps),
        naive(x, center, unit, eps),
        rtol=1e-12,
        atol=1e-14,
    )


def test_standard_form_is_batchnorm1d():
    x = 3 * torch.randn(7, 5) + 2
    torch.testing.assert_close(batch_norm(x).mT, nn.BatchNorm1d(7, affine=False)(x.mT))


def test_layer_form_is_layernorm():
    x = 3 * torch.randn(7, 5) + 2
    torch.testing.assert_close(layer_norm(x).mT, nn.LayerNorm(7, elementwise_affine=False)(x.mT))


@given(
    d=st.integers(1, 6),
    n=st.integers(2, 9),
    magnitude=st.floats(1e-3, 1e6),
    seed=st.integers(0, 2**16),
)
def test_rows_have_unit_norm_whatever_their_scale(d, n, magnitude, seed):
    x = magnitude * torch.randn(
        d, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    norms = torch.linalg.vector_norm(batch_norm(x, center=False, unit=True, eps=0.0), dim=-1)
    assert (norms - 1).abs().max() < 1e-12


def test_is_blind_to_the_scale_of_rows_but_not_of_columns():
    x = torch.randn(4, 6)
    rows = torch.tensor([0.1, 1.0, 7.0, 100.0])[:, None]
    plain = batch_norm(x, eps=0.0)
    torch.testing.assert_close(batch_norm(rows * x, eps=0.0), plain)
    changed = batch_norm(x * torch.arange(1.0, 7.0), eps=0.0)
    assert (changed - plain).abs().max() > 0.1


def test_centring_sees_a_shift_and_the_uncentred_form_does_not_remove_it():
    x = torch.randn(4, 6)
    torch.testing.assert_close(batch_norm(x + 5), batch_norm(x))
    assert (batch_norm(x + 5, center=False) - batch_norm(x, center=False)).abs().max() > 0.1


def test_a_row_of_zeros_stays_zero():
    x = torch.zeros(2, 4)
    for center in (True, False):
        assert batch_norm(x, center=center).abs().max() == 0


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.ones(4), {}, r"shape \(\.\.\., d, n\).*features on the rows"),
        (torch.ones(4, 0), {}, "empty"),
        (torch.ones(4, 3, dtype=torch.int64), {}, r"call x\.float\(\)"),
        (torch.ones(4, 3), {"eps": -1.0}, "eps must be"),
        (torch.ones(4, 3), {"eps": math.nan}, "eps must be"),
        (torch.ones(4, 1), {"center": True}, "at least 2 columns"),
    ],
)
def test_bad_input_names_cause_and_remedy(x, options, message):
    with pytest.raises(ValueError, match=message):
        batch_norm(x, **options)


def test_layer_norm_of_one_feature_is_refused():
    with pytest.raises(ValueError, match="single feature"):
        layer_norm(torch.ones(1, 3))


def test_unit_rows_are_those_of_the_paper():
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    gram = (x @ x.mT).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(unit_rows(x), x / gram.sqrt()[..., None])
