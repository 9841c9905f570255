"""Orthogonal factors, Muon for stacks, and condition numbers of changed matrices."""

import numpy as np
import pytest
import torch
from torch.linalg import matrix_norm, svdvals
from torch.optim._muon import _zeropower_via_newtonschulz

from bnmlp import BNMLP, haar_orthogonal
from bnmlp.layers.polar import MUON, newton_schulz, polar_factor
from bnmlp.layers.seeds import random_source
from bnmlp.theory.conditions import condition_after, gaussian_condition, muon_displacement
from bnmlp.training.batchwise import optimise
from bnmlp.training.orthogonal import StackedMuon, hidden_descent, hidden_state

DOUBLE = {"dtype": torch.float64}


def normal(*shape):
    return torch.randn(shape, generator=random_source(1), **DOUBLE)


@pytest.mark.parametrize("shape", [(6, 6), (4, 7), (7, 4)])
def test_newton_and_schulz_agree_with_the_iteration_of_pytorch(shape):
    m = normal(3, *shape)
    ours = newton_schulz(m)
    for one, found in zip(m, ours, strict=True):
        theirs = _zeropower_via_newtonschulz(one, MUON, 5, 1e-7)
        error = (found - theirs).abs().max().item()
        assert error < 0.05, f"in bfloat16 they differ by {error}"


def test_newton_and_schulz_apply_one_odd_polynomial_to_the_singular_values():
    m = normal(5, 8)
    u, s, v = torch.linalg.svd(m, full_matrices=False)
    s = s / s.norm()
    a, b, c = MUON
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(newton_schulz(m), u @ torch.diag(s) @ v)
    assert 0.6 < s.min() and s.max() < 1.25


def test_zero_has_no_direction_and_stays_zero():
    assert not newton_schulz(torch.zeros(2, 3, 3)).any()


@pytest.mark.parametrize("off", [1e-3, 0.1, 3.0])
def test_polar_factors_are_those_of_the_singular_value_decomposition(off):
    m = haar_orthogonal(4, d=6, generator=random_source(0), **DOUBLE) + off * normal(4, 6, 6)
    u, _, v = torch.linalg.svd(m)
    torch.testing.assert_close(polar_factor(m), u @ v, atol=1e-12, rtol=0)


def test_polar_factors_are_nearer_than_other_orthogonal_matrices():
    m = normal(5, 5)
    others = haar_orthogonal(200, d=5, generator=random_source(3), **DOUBLE)
    assert matrix_norm(m - polar_factor(m)) < matrix_norm(m - others).min()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_stacked_muon_takes_the_steps_of_pytorch_matrix_by_matrix(decay):
    start, target = normal(2, 2, 3, 6, 4)
    stack = start.clone().requires_grad_()
    single = [m.clone().requires_grad_() for m in start.flatten(0, 1)]
    ours = StackedMuon([stack], 0.02, decay)
    theirs = torch.optim.Muon(single, 0.02, weight_decay=decay)
    for _ in range(4):
        for optimizer, values in ((ours, [stack]), (theirs, single)):
            optimizer.zero_grad()
            wanted = [target] if values[0].ndim == 4 else target.flatten(0, 1)
            sum(((v - t) ** 2).sum() for v, t in zip(values, wanted, strict=True)).backward()
            optimizer.step()
    moved = matrix_norm(stack.detach() - start).mean()
    error = matrix_norm(stack.detach().flatten(0, 1) - torch.stack(single).detach()).max()
    assert error < 0.03 * moved, f"{error} of {moved}"


def test_groups_that_are_not_orthogonal_descend_plainly():
    p = torch.ones(3, requires_grad=True)
    (p**2).sum().backward()
    StackedMuon([{"params": [p], "orthogonal": False}], 0.1).step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.8))


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="call backward"):
        StackedMuon([torch.ones(2, 2, requires_grad=True)]).step(lambda: None)


def tiny(**options):
    return BNMLP(5, 4, 6, 3, replicas=2, seed=0, **DOUBLE, **options)


def batches(steps):
    y = torch.arange(9) % 3
    return [(normal(2, 9, 5), y.expand(2, -1)) for _ in range(steps)]


def test_held_weights_are_orthogonal_after_every_so_many_steps_and_at_no_other():
    net, off = tiny(), []
    for _ in hidden_descent(net, batches(4), 0.5, every=2):
        w = net.hidden_weight.detach()
        off.append(matrix_norm(w @ w.mT - torch.eye(4, **DOUBLE)).max().item())
    assert max(off[1], off[3]) < 1e-12 < 1e-3 < min(off[0], off[2])


def test_holding_is_the_projection_of_the_step_that_was_taken():
    free, held = tiny(), tiny()
    [*hidden_descent(free, batches(1), 0.5)]
    [*hidden_descent(held, batches(1), 0.5, every=1)]
    expected = polar_factor(free.hidden_weight.detach())
    torch.testing.assert_close(held.hidden_weight.detach(), expected)
    torch.testing.assert_close(held.input_weight, free.input_weight)


def test_plain_hidden_descent_is_sgd_with_a_rate_for_each_end():
    a, b = tiny(activation="tanh", gain_exponent=0.5), tiny(activation="tanh", gain_exponent=0.5)
    ours = torch.stack([*hidden_descent(a, batches(3), 0.2, first=0.1)])
    groups = [(b.input_weight, 0.1), (b.hidden_weight, 0.2), (b.output_weight, 0.1 * 6)]
    sgd = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in groups])
    torch.testing.assert_close(ours, torch.stack([*optimise(b, batches(3), sgd)]))


def test_muon_moves_every_hidden_matrix_alike_and_plain_steps_do_not():
    lengths = {}
    for muon in (True, False):
        net = tiny(init="gaussian")
        start = net.hidden_weight.detach().clone()
        [*hidden_descent(net, batches(1), 0.01, muon=muon)]
        lengths[muon] = matrix_norm(net.hidden_weight.detach() - start) / 0.02
    assert 0.6 < lengths[True].min() and lengths[True].max() < 1.25
    assert lengths[False].max() > 3 * lengths[False].min()


def test_the_state_of_hidden_matrices_is_that_of_loops_over_them():
    net, (x, y) = tiny(init="gaussian"), batches(1)[0]
    start = net.hidden_weight.detach() * 0.9
    state = hidden_state(net, start, x, y)
    for r in range(2):
        values = [svdvals(w[r]) for w in net.hidden_weight.detach()]
        each = torch.stack([v[0] / v[-1] for v in values])
        torch.testing.assert_close(state["condition"][r], each.median())
        torch.testing.assert_close(state["worst"][r], each.max())
    torch.testing.assert_close(state["moved"], torch.full((2,), 1 / 9, **DOUBLE))
    longer = tiny(init="gaussian")
    longer.load_state_dict(net.state_dict())
    with torch.no_grad():
        longer.hidden_weight[1] *= 3
    torch.testing.assert_close(
        hidden_state(longer, start, x, y)["range"], state["range"], atol=1e-3, rtol=0
    )


def test_a_random_change_leaves_the_condition_number_of_the_free_sum():
    d, source = 300, random_source(2)
    for s in (0.1, 0.2, 0.5):
        noise = torch.randn(d, d, generator=source, **DOUBLE) * s / d**0.5
        values = svdvals(haar_orthogonal(d=d, generator=source, **DOUBLE) + noise)
        found = (values[0] / values[-1]).item()
        assert abs(np.log(found / condition_after(s))) < 0.1, f"{found}, {condition_after(s)}"


def test_small_changes_raise_it_by_twice_the_root_of_two():
    assert (condition_after(1e-6) - 1) / 1e-6 == pytest.approx(8**0.5, rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_steps_of_one_length_that_share_gradients_go_as_far_as_predicted(beta):
    steps, source, average, place = 30, random_source(4), 0.0, 0.0
    for _ in range(steps):
        gradient = torch.randn(100_000, generator=source)
        average = beta * average + (1 - beta) * gradient
        way = (1 - beta) * gradient + beta * average
        place = place + 0.01 * way / way.norm()
    assert place.norm().item() == pytest.approx(muon_displacement(0.01, steps, beta), rel=0.02)


def test_muon_on_noise_goes_nearly_as_far_and_further_than_without_momentum():
    p = torch.zeros(40, 16, 16, requires_grad=True)
    muon, source = StackedMuon([p], 0.01, 0.0, 0.9), random_source(4)
    for _ in range(30):
        p.grad = torch.randn(p.shape, generator=source)
        muon.step()
    moved = matrix_norm(p.detach()).square().mean().div(16).sqrt().item()
    assert 0.75 < moved / muon_displacement(0.01, 30, 0.9) < 1
    assert moved > 1.5 * muon_displacement(0.01, 30, 0.0)


def test_half_of_large_gaussian_matrices_have_a_larger_condition_number():
    values = svdvals(normal(400, 40, 40))
    share = (values[:, 0] / values[:, -1] > gaussian_condition(40)).double().mean().item()
    assert abs(share - 0.5) < 0.08
