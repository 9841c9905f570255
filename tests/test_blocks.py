"""What is measured of single blocks, against networks put together by hand."""

import pytest
import torch
import torch.nn.functional as F

from bnmlp.measurements.blocks import block_costs, block_doses, nonlinear_share
from bnmlp.networks.residual import ResidualMLP

pytestmark = pytest.mark.usefixtures("float64")
SIZES = {"in_features": 5, "width": 6, "out_features": 3, "dtype": torch.float64, "replicas": 2}
X = torch.linspace(-1, 1, 20, dtype=torch.float64).sin().view(4, 5).cumsum(0)
Y = torch.tensor([0, 2, 1, 1])


def network(scheme="pre", **options):
    return ResidualMLP(3, scheme, **SIZES | options)


@pytest.mark.parametrize("scheme", ["pre", "peri", "keel", "post"])
def test_doses_are_steps_over_lengths(scheme):
    net = network(scheme)
    streams = [h.detach() for h in net.streams(X)]
    for i in range(3):
        for r in range(2):
            before, after = streams[i][r], streams[i + 1][r]
            each = [((after[k] - before[k]).norm() / before[k].norm()).item() for k in range(4)]
            assert block_doses(net, X)[i, r].item() == pytest.approx(sum(each) / 4)


@pytest.mark.parametrize("scheme", ["pre", "scaled", "post", "keel"])
@pytest.mark.parametrize("matrices", [1, 2])
def test_a_block_without_its_last_matrix_costs_what_is_said(scheme, matrices):
    net = network(scheme, matrices=matrices)
    found = block_costs(net, X, Y)
    for i in range(3):
        other = network(scheme, matrices=matrices)
        with torch.no_grad():
            other.hidden_weight[(i + 1) * matrices - 1] = 0
        for r in range(2):
            losses = [F.cross_entropy(n(X)[r], Y).item() for n in (net, other)]
            assert found[i, r].item() == pytest.approx(losses[1] - losses[0], abs=1e-12)


def perturbed(size, **options):
    net = network(**options)
    start = net.hidden_weight.detach().clone()
    with torch.no_grad():
        net.hidden_weight += size * torch.randn_like(start)
    return net, start


def test_blocks_of_one_matrix_are_linear_in_it_and_those_of_two_are_not():
    net, start = perturbed(0.3, matrices=1)
    assert nonlinear_share(net, start, X).max() < 1e-12
    net, start = perturbed(0.3)
    assert nonlinear_share(net, start, X).min() > 1e-2


def test_the_share_falls_with_the_size_of_the_change():
    shares = [nonlinear_share(*perturbed(s, activation="tanh"), X).max() for s in (1e-3, 1e-5)]
    assert 10 < shares[0] / shares[1] < 1000


def test_the_share_is_that_of_a_block_expanded_by_hand():
    net, start = perturbed(0.5, activation="identity", exponent=1.0)
    first, now = (w.detach()[:, 0] for w in (start, net.hidden_weight))

    def logits(product):
        x = F.layer_norm(X @ net.input_weight[0].mT, (6,), eps=net.eps)
        for i in range(3):
            x = x + F.layer_norm(x, (6,), eps=net.eps) @ product(i).mT / 3
        return F.layer_norm(x, (6,), eps=net.eps) @ net.output_weight[0].mT

    def linear(i):
        v, w = first[2 * i + 1], first[2 * i]
        return now[2 * i + 1] @ w + v @ now[2 * i] - v @ w

    whole, flat, before = (
        logits(p) for p in (lambda i: now[2 * i + 1] @ now[2 * i], linear,
                            lambda i: first[2 * i + 1] @ first[2 * i])
    )  # fmt: skip
    expected = (whole - flat).norm() / (whole - before).norm()
    assert nonlinear_share(net, start, X)[0].item() == pytest.approx(expected.item())


def test_nothing_of_the_network_changes():
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    block_costs(net, X, Y), block_doses(net, X), nonlinear_share(net, net.hidden_weight * 0.9, X)
    assert "branch" not in vars(net)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert net.training
