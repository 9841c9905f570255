import math

import pytest
import torch
from scipy import stats

from bnmlp import BNMLP, haar_orthogonal, xavier_normal
from bnmlp.layers.initialization import haar_frames, initial_weights

DRAWS = 40_000


def within_monte_carlo_error(samples, expected, sigmas=4.5):
    """Mean of ``samples`` (draws first) against ``expected``, entry by entry."""
    error = samples.std(0) / math.sqrt(len(samples))
    z = ((samples.mean(0) - expected) / error).abs().max().item()
    assert z < sigmas, f"{z:.1f} standard errors from {expected:.6f}"


@pytest.mark.parametrize("d", [1, 2, 5, 100])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_is_orthogonal(d, dtype, bound):
    q = haar_orthogonal(3, 2, d=d, dtype=dtype)
    assert q.shape == (3, 2, d, d)
    assert q.dtype == dtype
    assert (q @ q.mT - torch.eye(d, dtype=dtype)).abs().max() < bound


def test_equals_the_sign_corrected_qr_of_the_matrix_its_vectors_come_from():
    # Undo the reflections: the Gaussian matrix G = Q R with these Householder vectors.
    normal = torch.randn(6, 4, dtype=torch.float64)
    q = haar_frames(normal)
    alpha = torch.linalg.vector_norm(normal.tril(), dim=0)
    r = torch.triu(normal, 1)[:4] + torch.diag(alpha)
    q_reference, r_reference = torch.linalg.qr(q @ r)
    q_reference = q_reference * r_reference.diagonal().sign()
    torch.testing.assert_close(q, q_reference, rtol=0, atol=1e-12)
    # The first column is the first Gaussian vector, normalised: uniform on the sphere.
    torch.testing.assert_close(q[:, 0], normal[:, 0] / alpha[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_second_and_fourth_moments_are_haar(d):
    w = haar_orthogonal(DRAWS, d=d, dtype=torch.float64)
    within_monte_carlo_error(w, 0.0)
    within_monte_carlo_error(w**2, 1 / d)
    within_monte_carlo_error(w**4, 3 / (d * (d + 2)))
    different = w[:, :1, :1] ** 2 * w[:, 1:, 1:] ** 2
    within_monte_carlo_error(different, (d + 1) / (d * (d + 2) * (d - 1)))
    within_monte_carlo_error(w[:, :1] ** 2 * w[:, 1:] ** 2, 1 / (d * (d + 2)))


def test_both_determinants_are_equally_likely():
    negative = int((torch.linalg.det(haar_orthogonal(10_000, d=3)) < 0).sum())
    assert stats.binomtest(negative, 10_000).pvalue > 1e-4, f"{negative} of 10000 are reflections"


def test_without_the_sign_correction_it_would_not_be_haar():
    # The control: LAPACK's own signs make the diagonal of Q prefer one side.
    q = torch.linalg.qr(torch.randn(20_000, 3, 3, dtype=torch.float64))[0]
    mean = q[:, 0, 0].mean().item()
    assert mean < -0.3, f"mean of Q_11 is {mean:.3f}"


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (4, 4)])
def test_rectangular_frames_are_semi_orthogonal(shape):
    q = haar_frames(torch.randn(5, *shape, dtype=torch.float64))
    assert q.shape == (5, *shape)
    gram = q @ q.mT if shape[0] <= shape[1] else q.mT @ q
    assert (gram - torch.eye(min(shape), dtype=torch.float64)).abs().max() < 1e-13


def test_xavier_variance_is_two_over_fan_in_plus_fan_out():
    w = xavier_normal(torch.randn(400, 600), gain=3.0)
    assert w.var().item() == pytest.approx(9 * 2 / 1000, rel=0.02)


@pytest.mark.parametrize("init", ["orthogonal", "gaussian"])
def test_replicas_have_the_same_bits_however_many_are_built(init):
    def build(replicas):
        return BNMLP(20, 12, 6, 3, init=init, replicas=replicas, seed=7)

    ten = build(10)
    for count in (1, 3, 7):
        few = build(count)
        for name in ("input_weight", "output_weight"):
            assert torch.equal(getattr(few, name), getattr(ten, name)[:count])
        assert torch.equal(few.hidden_weight, ten.hidden_weight[:, :count])


def test_layers_do_not_depend_on_depth_and_differ_from_each_other():
    deep, shallow = BNMLP(9, 5, 12, 3, seed=1), BNMLP(9, 5, 4, 3, seed=1)
    assert torch.equal(deep.hidden_weight[:3], shallow.hidden_weight)
    assert torch.equal(deep.output_weight, shallow.output_weight)
    other = BNMLP(9, 5, 12, 3, seed=2)
    flat = torch.cat([deep.hidden_weight, other.hidden_weight]).flatten(1)
    distance = torch.cdist(flat, flat) + 10 * torch.eye(len(flat))
    assert distance.min() > 0.1, "two layers share their weights"


def test_float32_and_float64_models_of_one_seed_agree_to_rounding():
    a = BNMLP(9, 30, 4, 3, dtype=torch.float64).hidden_weight
    b = BNMLP(9, 30, 4, 3, dtype=torch.float32).hidden_weight
    assert (a - b).abs().max() < 1e-5


def test_init_gain_scales_orthogonal_and_gaussian_weights_alike():
    for init in ("orthogonal", "gaussian"):
        plain, scaled = (
            initial_weights(init, range(2), range(2), 4, 4, seed=0, gain=gain, dtype=torch.float64)
            for gain in (1.0, 5 / 3)
        )
        torch.testing.assert_close(scaled, plain * (5 / 3))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "give the size"),
        ((2,), {"d": 0}, "positive integer, got 0"),
        ((-1, 3), {}, "positive integer, got -1"),
        ((2.5,), {}, "positive integer, got 2.5"),
        ((3,), {"dtype": torch.int64}, "floating point"),
    ],
)
def test_bad_input_names_cause_and_remedy(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        haar_orthogonal(*arguments, **options)


@pytest.mark.parametrize("size", [1, 4])
def test_a_last_number_drawn_as_zero_gives_an_orthogonal_matrix_too(size):
    normal = torch.randn(size, size, dtype=torch.float64)
    normal[-1, -1] = 0
    q = haar_frames(normal)
    torch.testing.assert_close(q @ q.mT, torch.eye(size, dtype=torch.float64))
