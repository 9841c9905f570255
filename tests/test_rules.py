"""Rules that turn matrices by given angles or warm up, and what steps were."""

import math

import pytest
import torch

from bnmlp import BNMLP
from bnmlp.measurements.rates import spread
from bnmlp.theory.weight_dynamics import critical_learning_rate, momentum_map, next_rate
from bnmlp.training.descent import (
    Descent,
    cosine,
    critical,
    descent,
    held,
    history,
    levelled,
    mapped_rates,
    rule_of,
    turning,
    warmed,
)


def test_every_matrix_turns_by_its_angle_and_the_history_holds_all_steps():
    model = BNMLP(6, 5, 3, 4, replicas=2, dtype=torch.float64)
    angles = torch.tensor([0.01, 0.02, 0.03], dtype=torch.float64)[:, None]
    batches = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(4, (8,))) for _ in range(5)]
    run = history(descent(model, batches, turning(angles)))
    assert run.rates.shape == (5, 3, 2)
    assert torch.allclose(run.rates * run.learning_rates, angles.expand(5, 3, 2))
    grown = run.norms[1] / run.norms[0]  # a step orthogonal to the weights
    assert torch.allclose(grown, (1 + angles**2).sqrt().expand(3, 2))


def test_a_warm_up_is_linear_and_ends_at_its_target():
    rule, rates = warmed(2.0, 4), torch.ones(3, 1)
    assert [rule(rates, t) for t in (0, 1, 3, 9)] == [0.5, 1.0, 2.0, 2.0]


def test_a_cosine_falls_to_zero_and_is_half_in_the_middle():
    rule, rates = cosine(2.0, 8), torch.ones(3, 1)
    assert rule(rates, 0) == 2
    assert rule(rates, 4) == pytest.approx(1)
    assert rule(rates, 8) == pytest.approx(0)


def test_levelled_matrices_turn_by_the_median_and_those_without_gradient_are_let_be():
    rates = torch.tensor([[1.0], [0.0], [4.0]])
    angles = levelled(0.1)(rates, 0) * rates
    assert angles.flatten().tolist() == pytest.approx([0.1, 0.0, 0.1])


def test_the_critical_rate_may_be_that_of_some_matrices():
    rates = torch.tensor([[100.0, 100.0], [1.0, 9.0], [4.0, 1.0]])
    assert critical(9.0)(rates, 0).tolist() == pytest.approx([0.1, 0.1])
    among = critical(9.0, slice(1, None))(rates, 0)
    assert among.tolist() == critical_learning_rate(rates[1:]).tolist() != [0.1, 0.1]


def test_rules_have_names():
    rates = torch.tensor([[2.0], [0.5]])
    assert rule_of("constant", 0.3)(rates, 7) == 0.3
    assert rule_of("linear", 0.3, warmup=4)(rates, 1) == pytest.approx(0.15)
    assert rule_of("cosine", 0.3, steps=4)(rates, 2) == pytest.approx(0.15)
    assert rule_of("critical", 9.0)(rates, 0).item() == 1
    for name, ratio in (("equalised", 1), ("levelled", 1), ("tilted", math.exp(0.2))):
        angles = rule_of(name, 0.1, tilt=0.2)(rates, 0) * rates
        assert (angles[0] / angles[1]).item() == pytest.approx(ratio)
    with pytest.raises(ValueError, match="unknown schedule 'steep'; use one of constant, linear"):
        rule_of("steep", 0.3)


def moments(momentum=0.0):
    model = BNMLP(6, 5, 4, 4, replicas=2, dtype=torch.float64)
    batches = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(4, (8,))) for _ in range(5)]
    return list(descent(model, batches, held(0.3), momentum=momentum))


def test_what_follows_from_rates_is_the_same_in_one_moment_and_in_a_history():
    each = moments()
    run = history(each)
    for name in ("spread", "turns", "base_norms"):
        assert torch.equal(getattr(run, name), torch.stack([getattr(m, name) for m in each]))
    m = each[2]
    assert torch.equal(m.spread, spread(m.rates))
    assert torch.equal(m.turns, spread(m.rates * m.learning_rates))
    gradients = m.rates * m.norms
    torch.testing.assert_close(m.base_norms, gradients * m.norms)  # g(W) = g(W/|W|) / |W|
    for chosen in (slice(1, None), [1, 3], [False, True, False, True]):
        some = run.of(chosen)
        assert torch.equal(some.rates, run.rates[:, chosen])
        assert torch.equal(some.losses, run.losses)
        assert torch.equal(some.spread[2], spread(m.rates[chosen]))


def test_mapped_rates_begin_with_the_measured_ones_and_follow_the_map():
    run = history(moments())
    found = mapped_rates(run)
    torch.testing.assert_close(found[0], run.rates[0])
    expected = run.rates[0]
    for t in range(1, 5):
        expected = next_rate(expected, 0.3)
        torch.testing.assert_close(found[t], expected)
    slower = mapped_rates(run, learning_rates=[0.1] * 5)
    torch.testing.assert_close(slower[1], next_rate(run.rates[0], 0.1))
    heavy = history(moments(0.9))
    base = heavy.base_norms[0]
    state = heavy.norms[0] ** 2, 0 * base, 0 * base
    for t in range(5):
        torch.testing.assert_close(mapped_rates(heavy, 0.9)[t], base / state[0])
        state = momentum_map(state, base, 0.3, 0.9)


@pytest.mark.parametrize("rule", [held(0.1), lambda rates, t: 0.1, critical(0.1)])
def test_learning_rates_that_are_numbers_keep_all_digits(rule):
    model, twin = (BNMLP(6, 5, 3, 4, dtype=torch.float64) for _ in range(2))
    batch = torch.randn(8, 6, dtype=torch.float64), torch.randint(4, (8,))
    (moment,) = descent(model, [batch], rule, others=lambda rates, t: 0.3)
    assert moment.learning_rates.unique().tolist() == [0.1]
    torch.nn.functional.cross_entropy(twin(batch[0])[0], batch[1]).backward()
    for name, p in twin.named_parameters():
        moved = p - (0.3 if name == "output_weight" else 0.1) * p.grad
        error = (model.get_parameter(name) - moved).abs().max() / p.grad.abs().max()
        assert error < 1e-14, f"{name}: {error:.0e}"


def test_on_the_sphere_matrices_keep_their_length_and_take_the_direction_of_the_step():
    x, y = torch.randn(2, 8, 6), torch.randint(0, 3, (2, 8))
    models = [BNMLP(6, 5, 3, 3, replicas=2, dtype=torch.float64) for _ in range(2)]
    off, on = (
        Descent(model, held(0.5), sphere=sphere)
        for model, sphere in zip(models, (False, True), strict=True)
    )
    batch = x.double(), y
    first = off.step(*batch, 0), on.step(*batch, 0)
    moved = [model.hidden_weight.detach() for model in models]
    unit = [w / w.flatten(-2).norm(dim=-1)[..., None, None] for w in moved]
    torch.testing.assert_close(*unit)
    after = on.step(*batch, 1)
    torch.testing.assert_close(after.norms, first[1].norms)
    assert (off.step(*batch, 1).norms[1:] > first[0].norms[1:]).all()
