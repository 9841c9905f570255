import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnmlp import BNMLP, batch_norm, explosion_rate, gradient_norms, haar_orthogonal, isometry_gap
from bnmlp.theory import (
    amplification_budget,
    expected_gap_change,
    expected_gradient_energy,
    explosion_rate_bounds,
    gap_decay_factor,
    gaussian_explosion_rate,
    haar_moment,
    spectrum_flow,
    stationary_spread,
)


def sigmas(samples, expected):
    """Distance of a sample mean from a value, in standard errors."""
    return abs(samples.mean() - expected) / (samples.std() / math.sqrt(len(samples)))


@pytest.mark.parametrize("d", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "entries",
    [
        [(0, 0)],
        [(0, 0)] * 2,
        [(0, 0)] * 4,
        [(0, 0), (0, 0), (0, -1), (0, -1)],
        [(0, 0), (0, 0), (-1, -1), (-1, -1)],
        [(0, 0), (0, -1), (-1, 0), (-1, -1)],
        [(0, 0), (0, 0), (0, -1), (-1, 0)],
    ],
)
def test_haar_moments_equal_sample_means(d, entries):
    entries = [(i % d, j % d) for i, j in entries]
    w = haar_orthogonal(20_000, d=d, dtype=torch.float64)
    products = torch.stack([w[:, i, j] for i, j in entries]).prod(0)
    if products.std() < 1e-12:  # one value only, as +-1 squared
        assert products[0].item() == pytest.approx(haar_moment(entries, d))
    else:
        assert sigmas(products, haar_moment(entries, d)) < 4.5


def test_squared_entries_of_a_row_sum_to_one():
    d = 6
    total = sum(haar_moment([(0, 0), (0, 0), (0, k), (0, k)], d) for k in range(d))
    assert total == pytest.approx(haar_moment([(0, 0), (0, 0)], d))


SPECTRA = {
    "nearly isometric": torch.linspace(0.99, 1.01, 50),
    "wide": torch.linspace(0.1, 3, 20),
    "condition 1e6": torch.logspace(0, -6, 50),
    "one outlier": torch.tensor([30.0] + [1.0] * 99),
    "half the rank": torch.tensor([1.0] * 4 + [0.0] * 4),
    "four": torch.tensor([1.0, 0.5, 0.1, 1e-3]),
    "two hundred": torch.logspace(0, -2, 200),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_expected_gap_change_equals_sample_means(name):
    values = SPECTRA[name].double()
    g = torch.randn(100_000, len(values), dtype=torch.float64).square_()
    change = (g @ (values / values.mean())).log() - g.sum(-1).log()
    assert sigmas(change, expected_gap_change(values)) < 4


def test_expected_gap_change_is_the_mean_of_real_layers():
    d = 10
    x = torch.randn(d, d, dtype=torch.float64)
    x = batch_norm(x, center=False, unit=True, eps=0.0)
    w = haar_orthogonal(20_000, d=d, dtype=torch.float64)
    changes = isometry_gap(batch_norm(w @ x, center=False, unit=True, eps=0.0)) - isometry_gap(x)
    assert sigmas(changes, expected_gap_change(torch.linalg.svdvals(x) ** 2)) < 4


def test_expected_gap_change_near_isometry_is_its_second_order():
    d = 20
    values = torch.ones(d, dtype=torch.float64)
    values[:2] += torch.tensor([1e-5, -1e-5])
    assert expected_gap_change(values).item() == pytest.approx(-2e-10 / (d * (d + 2)), rel=1e-4)


def test_expected_gap_change_in_closed_form():
    # One direction left: a chi-squared variable with one degree of freedom against one with d.
    for d in (2, 5, 40):
        digamma = torch.digamma(torch.tensor([0.5, d / 2], dtype=torch.float64))
        expected = (digamma[0] - digamma[1]).item() + math.log(d)
        values = [1.0] + [0.0] * (d - 1)
        assert expected_gap_change(values).item() == pytest.approx(expected, rel=1e-10)


@given(logs=st.lists(st.floats(-14, 14), min_size=2, max_size=6), scale=st.floats(1e-9, 1e9))
def test_expected_gap_change_is_negative_finite_and_blind_to_scale_and_order(logs, scale):
    values = torch.tensor(logs, dtype=torch.float64).exp()
    change = expected_gap_change(values).item()
    assert -math.inf < change <= 0
    again = expected_gap_change(scale * values.flip(0)).item()
    assert again == pytest.approx(change, rel=1e-9, abs=1e-14)


def test_decay_factor_is_d_over_d_plus_2():
    assert gap_decay_factor(1) == pytest.approx(1 / 3)
    assert gap_decay_factor(100) == pytest.approx(100 / 102)


def gap_of(spectra):
    return np.log(spectra.mean(-1)) - np.log(spectra).mean(-1)


def test_flow_starts_at_its_spectrum_and_ends_isometric():
    start = np.geomspace(1, 1e-4, 30)
    flow = spectrum_flow(start, [0, 30, 600])
    np.testing.assert_allclose(flow[0], np.sort(start / start.mean()), rtol=1e-9)
    np.testing.assert_allclose(flow[-1], 1, atol=1e-3)
    assert (np.diff(flow, axis=1) > -1e-6).all()  # repulsion keeps the order


def test_flow_lowers_the_gap_by_the_spread():
    start = np.geomspace(1, 0.2, 40)
    flow = spectrum_flow(start, [0, 1e-3])
    spread = ((flow[0] - 1) ** 2).mean()
    slope = (gap_of(flow[1]) - gap_of(flow[0])) / 1e-3
    assert slope == pytest.approx(-spread / 42, rel=1e-2)


@pytest.mark.slow
def test_flow_predicts_networks():
    d, layers = 64, torch.arange(0, 257, 64)
    x = torch.randn(d, d, dtype=torch.float64)
    model = BNMLP(
        d, d, 257, 2, center=False, unit_norm=True, eps=0.0, replicas=12, dtype=torch.float64
    )
    x_l = model.representations(x.mT, layers)["norm"]
    measured = isometry_gap(x_l)[:, 0:].median(1).values.numpy()
    flow = spectrum_flow(torch.linalg.svdvals(x_l[0, 0]) ** 2, layers.tolist())
    np.testing.assert_allclose(gap_of(flow)[1:4], measured[1:4], rtol=0.3)


def test_budget_is_half_the_gap_and_has_no_bound_without_rank():
    assert amplification_budget(2.0) == 1.0
    assert amplification_budget(2.0, 0.5) == 0.75
    assert amplification_budget(math.inf) == math.inf


def test_budget_is_what_normalisation_does():
    d, depth = 20, 30
    options = {"center": False, "unit_norm": True, "eps": 0.0, "dtype": torch.float64}
    stages = BNMLP(9, d, depth, 2, replicas=3, **options).representations(
        torch.randn(d + 4, 9, dtype=torch.float64)
    )
    # Rank 9 only at first: take the layers as a network whose input is the first representation.
    assert isometry_gap(stages["norm"][0]).isinf().all()
    stages = BNMLP(d, d, depth, 2, replicas=3, **options).representations(
        torch.randn(d + 4, d, dtype=torch.float64)
    )
    spent = -stages["linear"][1:].square().sum(-1).log().mean(-1).sum(0) / 2
    gaps = isometry_gap(stages["norm"])
    for r in range(3):
        budget = amplification_budget(gaps[0, r].item(), gaps[-1, r].item())
        assert spent[r].item() == pytest.approx(budget, rel=1e-10)


def test_gradient_energy_runs_from_both_parts_to_the_rotations():
    energy = expected_gradient_energy(2.0, 3.0, 10, [0, 10_000])
    assert energy[0] == pytest.approx(2 + 3 * 10 / 12)
    assert energy[1] == pytest.approx(2)


def test_bounds_close_at_full_rank_and_open_towards_gaussian_rates():
    low, high = explosion_rate_bounds(50, 50)
    assert high == 0 > low
    for rank in (5, 20, 49):
        low, high = explosion_rate_bounds(50, rank)
        assert high > 0
        assert high - low == pytest.approx(-0.5 * math.log(1 - 1 / rank))
    # A vanishing share of the width: isotropic Gaussian rows.
    low, _ = explosion_rate_bounds(10**7, 20)
    assert low == pytest.approx(gaussian_explosion_rate(20, center=False), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [15, 30])
def test_rates_of_deficient_batches_lie_in_the_bounds(rank):
    d, depth = 50, 800
    model = BNMLP(d, d, depth, 5, center=False, replicas=8)
    x, y = torch.randn(rank, d), torch.arange(rank) % 5
    rate = explosion_rate(gradient_norms(model, x.float(), y), range(150, 700)).mean().item()
    low, high = explosion_rate_bounds(d, rank)
    assert low < rate < high, f"{rate:.4f} is not between {low:.4f} and {high:.4f}"


def test_stationary_spread_exceeds_that_of_equal_eigenvalues():
    for rank in (10, 25, 49):
        assert stationary_spread(50, rank) > 50 / rank - 1
    assert stationary_spread(50, 50) == 0


@pytest.mark.slow
def test_deep_batches_of_deficient_rank_rest_at_the_stationary_spread():
    d, rank = 100, 50
    model = BNMLP(
        d, d, 401, 2, center=False, unit_norm=True, eps=0.0, replicas=8, dtype=torch.float64
    )
    x_l = model.representations(torch.randn(rank, d, dtype=torch.float64), [300, 350, 400])["norm"]
    values = torch.linalg.svdvals(x_l) ** 2  # (3, R, rank), the others zero
    spread = ((values - 1).square().sum(-1) + d - rank).mean().item() / d
    assert spread == pytest.approx(stationary_spread(d, rank), rel=0.05)


def test_mean_reduction_costs_one_sample():
    assert gaussian_explosion_rate(20) == gaussian_explosion_rate(19, center=False)
    assert gaussian_explosion_rate(5) == pytest.approx(0.5 * math.log(3 / 2))


def test_relu_rate_of_large_batches():
    limit = 0.5 * math.log(math.pi / (math.pi - 1))
    assert gaussian_explosion_rate(10**7, activation="relu") == pytest.approx(limit, rel=1e-5)
    assert gaussian_explosion_rate(10, activation="relu") > limit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "center"), [("identity", False), ("identity", True), ("relu", True)]
)
def test_wide_gaussian_networks_explode_at_the_predicted_rate(activation, center):
    n = 8
    model = BNMLP(
        50, 1000, 30, 5, activation=activation, center=center, init="gaussian", replicas=4
    )
    x, y = torch.randn(n, 50), torch.arange(n) % 5
    rate = explosion_rate(gradient_norms(model, x.float(), y), range(6, 26)).mean().item()
    expected = gaussian_explosion_rate(n, activation=activation, center=center)
    assert rate == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gap_decay_factor(0), "at least 1"),
        (lambda: gaussian_explosion_rate(3), "at least 4"),
        (lambda: gaussian_explosion_rate(2, center=False), "at least 3"),
        (lambda: gaussian_explosion_rate(9, activation="tanh"), "not for 'tanh'"),
        (lambda: gaussian_explosion_rate(9, activation="relu", center=False), "center=False"),
        (lambda: haar_moment([(0, 0)] * 6, 3), "at most four"),
        (lambda: haar_moment([(0, 3)], 3), "0..2"),
        (lambda: expected_gap_change([1.0, -1.0]), "not negative"),
        (lambda: expected_gap_change([1.0, math.nan]), "finite"),
        (lambda: expected_gap_change([0.0, 0.0]), "zeros"),
        (lambda: spectrum_flow([1.0, 0.0], [0, 1]), "positive"),
        (lambda: spectrum_flow([1.0, 2.0], [1, 0]), "decrease"),
        (lambda: amplification_budget(-1.0), "not negative"),
        (lambda: explosion_rate_bounds(50, 51), "3..50"),
        (lambda: explosion_rate_bounds(50, 2), "3..50"),
        (lambda: stationary_spread(50, 0), "1..50"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
