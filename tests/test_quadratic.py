import math

import pytest
import torch

from bnmlp.theory.quadratic import Parabola, expected_losses, steady_variance


def test_plain_descent_follows_the_scalar_recursion():
    h, noise, rate = 1 / torch.arange(1.0, 30), 1 / torch.arange(1.0, 30) / 8, 0.7
    s = torch.ones(29, dtype=torch.float64)
    h, noise = h.double(), noise.double()
    losses = expected_losses(h, noise, rate, 40)
    for loss in losses:
        assert loss == pytest.approx((0.5 * h @ s).item(), rel=1e-12)
        s = (1 - rate * h) ** 2 * s + rate**2 * noise


def test_it_ends_at_the_steady_state():
    h, noise, rate = torch.tensor([1.0, 0.3]), torch.tensor([0.05, 0.2]), 0.7
    end = expected_losses(h, noise, rate, 2000)[-1]
    expected = 0.5 * h.double() @ steady_variance(h, noise, rate)
    assert end == pytest.approx(expected.item(), rel=1e-10)
    assert steady_variance(torch.tensor([1.0]), torch.tensor([0.05]), 2.0).isinf().all()


@pytest.mark.parametrize(("momentum", "average"), [(0.9, 0.0), (0.0, 0.95), (0.5, 0.8)])
def test_moments_agree_with_a_simulation(momentum, average):
    h, noise, rate, steps, runs = 0.4, 0.3, 0.2, 60, 200_000
    losses = expected_losses(
        torch.tensor([h]), torch.tensor([noise]), rate, steps, momentum=momentum, average=average
    )
    generator = torch.Generator().manual_seed(4)
    theta, velocity = torch.ones(runs), torch.zeros(runs)
    mean = theta.clone()
    for _ in range(steps):
        slope = h * theta + math.sqrt(noise) * torch.randn(runs, generator=generator)
        velocity = momentum * velocity + slope
        theta = theta - rate * velocity
        mean = average * mean + (1 - average) * theta
    sampled = 0.5 * h * mean.square()
    error = sampled.std() / math.sqrt(runs)
    assert abs(sampled.mean() - losses[-1]) < 4 * error


def test_larger_batches_lower_the_floor_and_momentum_lowers_the_time():
    h = 1 / torch.arange(1, 1001).double()
    small, large = (expected_losses(h, h / b, 0.5, 300)[-1] for b in (1, 100))
    assert large < small
    plain, heavy = (expected_losses(h, h * 0, 0.1, 300, momentum=m)[-1] for m in (0.0, 0.9))
    assert heavy < plain


def test_a_parabola_changes_as_its_directions_do():
    h, slope = torch.tensor([2.0, -0.5, 1e-12]).double(), torch.tensor([0.3, 0.1, 0.0]).double()
    noise = torch.tensor([0.4, 0.2, 0.0]).double()
    found = Parabola(h, slope, noise).expected_change(8, 0.1, 30)
    second, change = (slope / h)[:2] ** 2, [0.0]  # E theta^2, flat directions aside
    start = 0.5 * h[:2] @ second
    for _ in range(30):
        second = (1 - 0.1 * h[:2]) ** 2 * second + 0.1**2 * noise[:2] / 8
        change.append((0.5 * h[:2] @ second - start).item())
    assert found.tolist() == pytest.approx(change, rel=1e-12)
    without_noise = Parabola(h, slope, 0 * noise).expected_change(8, 0.1, 1)[1].item()
    theta = -0.1 * slope[:2]  # one step down the slope
    assert without_noise == pytest.approx((slope[:2] @ theta + 0.5 * h[:2] @ theta**2).item())
    falling = Parabola(h, slope, noise).expected_change(8, 0.1, 30, below=0.0)
    alone = Parabola(h[1:2], slope[1:2], noise[1:2]).expected_change(8, 0.1, 30)
    assert torch.equal(falling, alone)
    assert falling[-1] < 0 < alone.abs().max()
