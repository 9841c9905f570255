import math

import pytest
import torch

from bnmlp import BNMLP, explosion_rate, gradient_norms
from bnmlp.theory import gap_decay_factor, gaussian_explosion_rate


def test_decay_factor_is_d_over_d_plus_2():
    assert gap_decay_factor(1) == pytest.approx(1 / 3)
    assert gap_decay_factor(100) == pytest.approx(100 / 102)


def test_mean_reduction_costs_one_sample():
    assert gaussian_explosion_rate(20) == gaussian_explosion_rate(19, center=False)
    assert gaussian_explosion_rate(5) == pytest.approx(0.5 * math.log(3 / 2))


@pytest.mark.slow
@pytest.mark.parametrize("center", [False, True])
def test_wide_gaussian_networks_explode_at_the_predicted_rate(center):
    n = 8
    model = BNMLP(50, 1000, 30, 5, center=center, init="gaussian", replicas=4)
    x, y = torch.randn(n, 50), torch.arange(n) % 5
    rate = explosion_rate(gradient_norms(model, x, y)).mean().item()
    assert rate == pytest.approx(gaussian_explosion_rate(n, center=center), rel=0.06)


@pytest.mark.parametrize(
    "call",
    [
        lambda: gap_decay_factor(0),
        lambda: gaussian_explosion_rate(3),
        lambda: gaussian_explosion_rate(2, center=False),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match="at least"):
        call()
