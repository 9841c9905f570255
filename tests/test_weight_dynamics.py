import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bnmlp import BNMLP, sgd_step
from bnmlp.machine.precision import float64
from bnmlp.measurements.rates import effective_rates, spread
from bnmlp.theory.weight_dynamics import (
    critical_learning_rate,
    equilibrium_rate,
    greedy_warmup,
    momentum_map,
    momentum_path,
    next_rate,
    random_walk,
    rate_after,
    rate_path,
)

RELU_GROWTH = math.sqrt(math.pi / (math.pi - 1))


def relu_network(depth=6, **options):
    options = {"activation": "relu", "init": "gaussian", "eps": 0.0} | options
    return BNMLP(11, 16, depth, 4, dtype=torch.float64, **options)


def batch(features=11, n=24):
    return torch.randn(n, features, dtype=torch.float64), torch.randint(4, (n,))


def gradients(model, x, y):
    loss = torch.nn.functional.cross_entropy(model.logits(x)[0], y)
    first, hidden = torch.autograd.grad(loss, (model.input_weight, model.hidden_weight))
    return [first[0], *hidden[:, 0]]


def weights(model):
    return [w[0].detach().clone() for w in model.layer_weights()]


def test_gradients_are_orthogonal_to_scale_invariant_weights():
    model = relu_network()
    for w, g in zip(weights(model), gradients(model, *batch()), strict=True):
        assert abs((w * g).sum()) < 1e-15 * w.norm() * g.norm() * w.numel()


def test_without_normalisation_they_are_not():
    model = relu_network(norm="none")
    cosines = [
        ((w * g).sum() / (w.norm() * g.norm())).item()
        for w, g in zip(weights(model), gradients(model, *batch()), strict=True)
    ]
    assert max(map(abs, cosines)) > 1e-3


def test_doubled_weights_halve_their_own_gradient_only():
    model, (x, y) = relu_network(), batch()
    before = gradients(model, x, y)
    with torch.no_grad():
        model.hidden_weight[2] *= 2
    for layer, (was, now) in enumerate(zip(before, gradients(model, x, y), strict=True)):
        factor = 0.5 if layer == 3 else 1.0
        assert (now - factor * was).norm() < 1e-12 * was.norm()


def test_squared_norms_grow_by_the_squared_step():
    model, (x, y), rate = relu_network(), batch(), 0.3
    before, g = weights(model), gradients(model, x, y)
    sgd_step(model, x, y, rate)
    for was, grad, now in zip(before, g, weights(model), strict=True):
        expected = was.square().sum() + rate**2 * grad.square().sum()
        assert now.square().sum() == pytest.approx(expected.item(), rel=1e-12)


def test_effective_rates_are_gradient_over_weight_norm():
    model, (x, y) = relu_network(), batch()
    expected = torch.stack(
        [g.norm() / w.norm() for w, g in zip(weights(model), gradients(model, x, y), strict=True)]
    )
    torch.testing.assert_close(effective_rates(model, x, y)[:, 0], expected, rtol=1e-12, atol=0)


def test_the_map_is_exact_while_the_base_gradient_keeps_its_length():
    generator = torch.Generator().manual_seed(1)
    norms, base = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.1, 3.0, 1.0])
    path, rates = random_walk(norms, base, [500, 100, 9], [0.7] * 50, generator=generator)
    expected = base.double() / norms.double().square()
    for rate in rates:
        torch.testing.assert_close(rate, expected, rtol=1e-12, atol=0)
        expected = next_rate(expected, 0.7)
    assert (path.diff(dim=0) > 0).all()
    with pytest.raises(ValueError, match="at least two weights, got 1"):
        random_walk(norms, base, [500, 100, 1], [0.7])


def test_continuous_time_forgets_where_it_began():
    rates = torch.tensor([1e-2, 1.0, 30.0], dtype=torch.float64)
    late = rate_after(rates, 0.1, 1e9)
    torch.testing.assert_close(late, torch.full_like(late, 1 / (0.1 * math.sqrt(2e9))))
    path = torch.tensor([0.05], dtype=torch.float64)
    for _ in range(2000):
        path = next_rate(path, 1.0)
    torch.testing.assert_close(
        path, rate_after(torch.tensor([0.05], dtype=torch.float64), 1.0, 2000), rtol=1e-2, atol=0
    )


def test_no_learning_rate_widens_a_spread_while_base_gradients_stay():
    rates = RELU_GROWTH ** torch.arange(20, dtype=torch.float64)
    before = spread(rates)
    for learning_rate in torch.logspace(-4, 3, 30):
        two = rates[[0, -1]]
        assert spread(next_rate(two, learning_rate)) <= before + 1e-12


def test_the_critical_learning_rate_makes_two_rates_equal():
    two = torch.tensor([0.3, 40.0], dtype=torch.float64)
    critical = critical_learning_rate(two)
    assert spread(next_rate(two, critical)) == pytest.approx(0, abs=1e-12)
    kept, reversed_ = (next_rate(two, factor * critical) for factor in (0.9, 1.1))
    assert kept[0] < kept[1]
    assert reversed_[0] > reversed_[1]


def test_greedy_warmup_closes_the_spread_doubly_fast():
    rates = 1.2 ** torch.arange(50, dtype=torch.float64)
    learning_rates, path = greedy_warmup(rates, math.inf, 6)
    s = spread(path.T)
    assert s[0] == pytest.approx(8.934, abs=1e-3)
    # First and last layer meet; of the fifty, the middle two lie half a ratio from the largest.
    half, middle = s[0] / 2, math.log(1.2) / 2
    assert s[1] == pytest.approx(torch.cosh(half).log().item() - math.log(math.cosh(middle)))
    assert s[1] == pytest.approx(3.77, abs=0.005)
    assert (s.diff() < 0).all()
    assert s[5] < s[4] ** 2
    assert learning_rates.shape == (6,)
    _, slow = greedy_warmup(rates, float(1 / rates.max()), 6)
    assert spread(slow.T)[-1] > s[2]


def test_weight_decay_ends_at_one_rate_for_all_layers():
    generator = torch.Generator().manual_seed(2)
    learning_rate, decay = 0.1, 0.05
    norms, base = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 10.0])
    path, rates = random_walk(
        norms, base, [50, 80], [learning_rate] * 3000, weight_decay=decay, generator=generator
    )
    expected = equilibrium_rate(learning_rate, decay)
    torch.testing.assert_close(rates[-1], torch.full((2,), expected).double(), rtol=0.01, atol=0)
    fourth = learning_rate * base.double() ** 2 / (2 * decay)
    torch.testing.assert_close(path[-1] ** 4, fourth, rtol=0.02, atol=0)
    with pytest.raises(ValueError, match="positive"):
        equilibrium_rate(0.1, 0.0)


def velocity_walk(w, base, rate, beta, decay, steps, nesterov=False):
    """SGD of PyTorch along random gradients orthogonal to the weights; all that the map needs."""
    w = torch.nn.Parameter(w)
    sgd = torch.optim.SGD([w], rate, beta, weight_decay=decay, nesterov=nesterov)
    v, path = torch.zeros_like(w), []
    for _ in range(steps):
        g = torch.randn_like(w.data)
        g -= (g @ w.data) / (w.data @ w.data) * w.data
        g *= base / (g.norm() * w.data.norm())
        path.append((w.detach().clone(), v.clone(), g))
        w.grad = g.clone()
        sgd.step()
        v = sgd.state[w]["momentum_buffer"]
    return path


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_momentum_map_is_exact_given_the_angle_of_velocity_and_gradient(decay):
    rate, beta, base = 0.4, 0.7, torch.tensor(1.3, dtype=torch.float64)
    path = velocity_walk(torch.randn(7, dtype=torch.float64), base, rate, beta, decay, 12)
    state = path[0][0].square().sum(), torch.zeros(()).double(), torch.zeros(()).double()
    for w, v, g in path:
        measured = w @ w, w @ v, v @ v
        for ours, theirs in zip(state, measured, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        cosine = (v @ g) / (v.norm() * g.norm()).clamp_min(1e-30)
        state = momentum_map(state, base, rate, beta, weight_decay=decay, cosine=cosine)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_shadow_of_the_weights_takes_plain_steps_at_the_larger_rate(nesterov):
    rate, beta = 0.4, 0.7
    path = velocity_walk(torch.randn(7, dtype=torch.float64), 1.3, rate, beta, 0.0, 8, nesterov)
    plain, factor = rate / (1 - beta), beta**2 if nesterov else beta
    shadows = [w - plain * factor * v for w, v, _ in path]
    for now, after, (_, _, g) in zip(shadows, shadows[1:], path, strict=False):
        torch.testing.assert_close(after, now - plain * g, rtol=1e-10, atol=1e-12)


def test_without_momentum_the_map_is_that_of_rates():
    base = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    state = torch.ones(3).double(), torch.zeros(3).double(), torch.zeros(3).double()
    rates = base
    for _ in range(5):
        state, rates = momentum_map(state, base, 0.7, 0.0), next_rate(rates, 0.7)
        torch.testing.assert_close(base / state[0], rates, rtol=1e-12, atol=0)


def test_paths_are_maps_repeated():
    rates, sizes = torch.tensor([4.0, 1.0, 0.2], dtype=torch.float64), (0.3, 0.1, 2.0)
    path = rate_path(rates, sizes)
    assert path.shape == (4, 3)
    expected = rates
    for t, size in enumerate(sizes):
        assert torch.equal(path[t], expected)
        expected = expected / (1 + (size * expected) ** 2)
    torch.testing.assert_close(path[3], expected)
    norms = momentum_path(torch.ones(3).double(), [rates] * 3, sizes, 0.0)
    torch.testing.assert_close(rates / norms, path[:3])


def test_the_path_with_momentum_is_that_of_a_walk_with_these_angles():
    generator = torch.Generator().manual_seed(0)
    w, v = torch.randn(50, dtype=torch.float64, generator=generator), 0.0
    squares, base, cosines = [], [], []
    for _ in range(6):
        g = torch.randn(50, dtype=torch.float64, generator=generator)
        g = g - (g @ w) / (w @ w) * w
        squares.append(w @ w)
        base.append(g.norm() * w.norm())
        cosines.append(v @ g / (v.norm() * g.norm()) if torch.is_tensor(v) else 0.0)
        v = 0.8 * v + g
        w = w - 0.2 * v
    path = momentum_path(squares[0], base, [0.2] * 6, 0.8, cosines=cosines)
    torch.testing.assert_close(path, torch.stack(squares))
    uncorrelated = momentum_path(squares[0], base, [0.2] * 6, 0.8)
    assert (uncorrelated[2:] / path[2:] - 1).abs().max() > 1e-3, "the angles matter"


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_momentum_delays_the_growth_of_norms_and_then_grows_them_at_the_larger_rate(beta):
    rate, steps = 1e-4, 400
    state = torch.ones(1).double(), torch.zeros(1).double(), torch.zeros(1).double()
    for _ in range(steps):
        state = momentum_map(state, torch.ones(1).double(), rate * (1 - beta), beta)
    late = steps - (state[0].item() - 1) / rate**2
    assert late == pytest.approx(beta * (2 + beta) / (1 - beta**2), rel=1e-3)


def test_random_walks_with_momentum_follow_the_closed_map():
    generator = torch.Generator().manual_seed(3)
    base, rate, beta = torch.tensor([0.3, 3.0]).double(), 0.01, 0.9
    _, rates = random_walk(
        torch.ones(2), base, [20_000] * 2, [rate] * 150, momentum=beta, generator=generator
    )
    state = torch.ones(2).double(), torch.zeros(2).double(), torch.zeros(2).double()
    for found in rates:
        torch.testing.assert_close(found, base / state[0], rtol=0.01, atol=0)
        state = momentum_map(state, base, rate, beta)


def test_weight_decay_and_momentum_rest_where_the_fixed_point_says():
    rate, decay, beta = 0.1, 0.05, 0.9
    base = torch.tensor([0.1, 10.0], dtype=torch.float64)
    state = torch.ones(2).double(), torch.zeros(2).double(), torch.zeros(2).double()
    for _ in range(500):
        state = momentum_map(state, base, rate, beta, weight_decay=decay)
    n, _, v = state
    exact = rate * base**2 / (decay * (1 - beta) * (2 - rate * decay / (1 + beta)))
    torch.testing.assert_close(n**2, exact, rtol=1e-9, atol=0)
    chord = 2 * rate * decay / (1 + beta)
    torch.testing.assert_close(rate**2 * v / n, torch.full((2,), chord).double())
    _, rates = random_walk(
        torch.ones(2), base, [5000] * 2, [rate] * 200, momentum=beta, weight_decay=decay,
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    expected = torch.full((2,), equilibrium_rate(rate, decay, beta)).double()
    torch.testing.assert_close(rates[100:].mean(0), expected, rtol=0.03, atol=0)
    with pytest.raises(ValueError, match="momentum"):
        equilibrium_rate(0.1, 0.1, 1.0)


def test_double_precision_is_where_the_numbers_are_or_on_the_cpu():
    with FakeTensorMode():  # shapes and devices without numbers
        x, norms = torch.ones(3, device="cuda"), torch.ones(3, device="mps")
        assert float64(x).device.type == "cuda"
        assert float64(norms).device.type == "cpu", "MPS has no float64"
        assert float64(norms).dtype == float64(x).dtype == torch.float64
