"""Rates along layers, and intervals that hold what they promise."""

import math

import numpy as np
import pytest

from bnmlp.diagnosis.growth import STUDENT, rate_of


def walk(random, layers, drift=0.2, step=0.05):
    return np.cumsum(random.normal(drift, step, layers))


def line(random, layers, drift=0.2, noise=0.3):
    return drift * np.arange(layers) + random.normal(0, noise, layers)


def roles(random, layers, drift=0.2):
    """Layers of three roles at different levels, as in the blocks of a residual network."""
    return walk(random, layers, drift, 0.03) + np.resize([0.0, 1.5, -1.0], layers)


def covered(make, layers, runs=400):
    random = np.random.default_rng(layers)
    return np.mean([0.2 in rate_of(make(random, layers)) for _ in range(runs)])


@pytest.mark.parametrize("layers", [8, 20, 58, 400])
def test_the_interval_of_a_random_walk_covers_its_drift_as_often_as_it_says(layers):
    share = covered(walk, layers)
    assert 0.92 < share < 0.98, f"covered {share:.3f} of the time at {layers} layers"


@pytest.mark.parametrize("make", [line, roles])
@pytest.mark.parametrize("layers", [20, 58])
def test_other_kinds_of_scatter_are_covered_at_least_as_often(make, layers):
    assert covered(make, layers) > 0.92


def test_the_control_the_textbook_interval_of_a_slope_misses_the_drift_of_a_walk():
    random, layers = np.random.default_rng(0), 58
    x = np.arange(layers) - (layers - 1) / 2
    missed = 0
    for _ in range(200):
        y = walk(random, layers)
        slope = x @ y / (x @ x)
        residual = y - y.mean() - slope * x
        half = 2 * math.sqrt(residual @ residual / (layers - 2) / (x @ x))
        missed += abs(slope - 0.2) > half
    assert missed > 60, f"missed {missed} of 200"


def test_jumps_between_roles_do_not_widen_the_interval_as_successive_differences_would():
    y = roles(np.random.default_rng(1), 58)
    found = rate_of(y)
    differences = np.diff(y)
    naive = 2 * differences.std(ddof=1) / math.sqrt(len(differences))
    assert (found.high - found.low) / 2 < naive / 3
    assert found.low > 0


def test_an_exact_line_has_its_slope_and_no_width():
    found = rate_of(np.arange(30) * -0.5)
    assert found.value == pytest.approx(-0.5)
    assert found.high - found.low == pytest.approx(0, abs=1e-12)
    assert found.total == pytest.approx(-14.5)


def test_layers_without_a_number_are_left_out_and_counted():
    y = np.arange(20.0)
    y[[3, 7]] = -math.inf, math.nan
    found = rate_of(y)
    assert (found.value, found.layers, found.left_out) == (pytest.approx(1), 18, 2)


def test_several_networks_narrow_the_interval():
    random = np.random.default_rng(2)
    several = [walk(random, 40) for _ in range(9)]
    one, all_ = rate_of(several[0]), rate_of(several)
    assert all_.high - all_.low < 0.6 * (one.high - one.low)
    assert 0.2 in all_


def test_few_layers_have_a_rate_and_no_interval():
    found = rate_of(np.array([0.0, 1.0, 2.0]))
    assert (found.value, found.low, found.high) == (1.0, -math.inf, math.inf)
    assert "too few layers" in str(found)
    assert rate_of(np.array([1.0, math.nan])) is None


def test_quantiles_are_those_of_student():
    from scipy import stats

    expected = stats.t.ppf(0.975, np.arange(1, len(STUDENT) + 1))
    np.testing.assert_allclose(STUDENT, expected, atol=6e-4)
