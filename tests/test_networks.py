"""Every network through everything that takes a network, against naive twins."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnmlp import BNMLP, evaluate, gradient_norms, recalibrate
from bnmlp.measurements.evaluation import STATISTICS, averages_without_start
from bnmlp.measurements.rates import effective_rates
from bnmlp.networks.convolutional import ResNet, simple_cnn
from bnmlp.networks.losses import matrix_gradients
from bnmlp.networks.protocol import as_network, averages_kept, averaging, batch_of, stacked
from bnmlp.networks.replicas import read_replica, subset, write_replica
from bnmlp.networks.residual import ResidualMLP
from bnmlp.networks.skip import SkipMLP
from bnmlp.networks.transformer import Transformer
from bnmlp.training.descent import critical, descent, equalised, held, tilted

R, N, CLASSES = 3, 12, 4
ROWS, TOKENS, IMAGES = (16,), (4, 4), (1, 8, 8)


class Own(nn.Module):
    """Somebody's network, with biases, an affine normalisation and dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 8),
            nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, CLASSES),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


def copies(make, sample_ndim):
    return stacked([make() for _ in range(R)], sample_ndim)


def resnet():
    return ResNet(1, 2, in_channels=1, classes=CLASSES)


def residual(scheme, **options):
    return ResidualMLP(
        3, scheme, in_features=16, width=8, out_features=CLASSES, replicas=R, **options
    )


NETWORKS = {
    "BNMLP": (lambda: BNMLP(16, 8, 5, CLASSES, replicas=R, affine=True, bias=True), ROWS),
    "act_norm": (lambda: BNMLP(16, 8, 5, CLASSES, replicas=R, order="act_norm"), ROWS),
    "SkipMLP": (
        lambda: SkipMLP(5, in_features=16, width=8, out_features=CLASSES, replicas=R), ROWS,
    ),
    "plain": (
        lambda: SkipMLP(5, "plain", in_features=16, width=8, out_features=CLASSES, replicas=R),
        ROWS,
    ),
    "Peri-LN": (lambda: residual("peri"), ROWS),
    "hyper-connections": (lambda: residual("mixed", mixing=0.3, norm="derf"), ROWS),
    "activation last": (lambda: residual("late", matrices=3, activation="silu"), ROWS),
    "Transformer": (
        lambda: Transformer(4, 8, 2, CLASSES, tokens=4, heads=2, replicas=R), TOKENS,
    ),
    "ResNets": (lambda: copies(resnet, 3), IMAGES),
    "CNNs": (lambda: copies(lambda: simple_cnn(8, classes=CLASSES, wider=0.2), 3), IMAGES),
    "own": (lambda: copies(Own, 1), ROWS),
    "one": (lambda: as_network(resnet()), IMAGES),
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def case(request):
    """A network with trained-looking averages, samples for each network, and labels."""
    torch.manual_seed(0)
    make, sample = NETWORKS[request.param]
    network = make().double()
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "norm_bias")):
            value.normal_(0, 0.1)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(network.replicas, N, *sample, dtype=torch.float64)
    return network, x, torch.randint(CLASSES, (network.replicas, N))


def twins(network):
    """Each network alone."""
    if network.replicas == 1:
        return [network]
    return [subset(network, [r]) for r in range(network.replicas)]


def state(network):
    return {k: v.clone() for k, v in network.state_dict().items()}


def same(before, network):
    after = network.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_networks_side_by_side_compute_what_each_does_alone(case):
    network, x, y = case
    x = x[0] if network.replicas == 1 else x
    with averages_kept(network):
        logits = network(x)
    gradients, losses = matrix_gradients(network, x, y)
    for r, twin in enumerate(twins(network)):
        own = x if network.replicas == 1 else x[r]
        with averages_kept(twin):
            torch.testing.assert_close(twin(own)[0], logits[r])
        found, loss = matrix_gradients(twin, own, y[r])
        torch.testing.assert_close(loss[0], losses[r])
        torch.testing.assert_close(loss[0], F.cross_entropy(logits[r].detach(), y[r]))
        for name, gradient in found.items():
            torch.testing.assert_close(gradient[0], gradients[name][r])


def test_a_batch_for_all_is_that_batch_for_each(case):
    network, x, _ = case
    with averages_kept(network):
        shared = network(x[0])
    if network.replicas > 1:
        with averages_kept(network):
            torch.testing.assert_close(network(x[:1].expand_as(x)), shared)


def test_matrices_are_views_and_gradients_are_those_of_differences(case):
    network, x, y = case
    x = x[0]
    gradients, losses = matrix_gradients(network, x, y)
    name = list(gradients)[len(gradients) // 2]
    step = 1e-6
    for r in range(network.replicas):
        up, down = (matrix_gradients(moved(network, name, r, s), x, y)[1] for s in (step, -step))
        slope = (up[r] - down[r]) / (2 * step)
        torch.testing.assert_close(slope, gradients[name][r, 0, 0], rtol=1e-4, atol=1e-8)
        others = [i for i in range(network.replicas) if i != r]
        torch.testing.assert_close(up[others], losses[others])
    assert gradient_norms(network, x, y).shape == (len(gradients), network.replicas)


def moved(network, name, r, step):
    network = copy.deepcopy(network)
    with torch.no_grad():
        network.weight_matrices()[name][r, 0, 0] += step
    return network


def without_eps(network):
    if isinstance(network, BNMLP):
        return network.with_choices(eps=1e-14)
    for module in network.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-14
    return network


def test_the_length_of_a_normalised_matrix_changes_nothing(case):
    network, x, y = case
    longer = copy.deepcopy(network)
    with torch.no_grad():
        for name in network.normalized():
            longer.weight_matrices()[name].mul_(3)
            bias = "module." + name.replace("weight", "bias")
            dict(longer.named_parameters()).get(bias, torch.zeros(())).mul_(3)
    network, longer = without_eps(network), without_eps(longer)
    before, after = (matrix_gradients(n, x[0], y)[1] for n in (network, longer))
    torch.testing.assert_close(before, after, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        list(longer.weight_matrices().values())[-1].mul_(3)
    assert not torch.allclose(matrix_gradients(longer, x[0], y)[1], before), "the last one counts"


def test_evaluation_leaves_everything_and_recalibration_makes_the_largest_batch(case):
    network, x, y = case
    x, y = x[0], y[0]
    before, mode = state(network), network.training
    found = {s: evaluate(network, x, y, s, calibration=x, batch_size=N) for s in STATISTICS}
    assert same(before, network)
    assert network.training == mode
    torch.testing.assert_close(found["batch"].loss, found["recalibrated"].loss)
    if averaging(network):
        assert not torch.allclose(found["running"].loss, found["batch"].loss)
    recalibrate(network, x)
    torch.testing.assert_close(evaluate(network, x, y, "running").loss, found["batch"].loss)


def test_averages_without_their_start_are_those_of_the_batches_seen(case):
    network, x, y = case
    if not averaging(network):
        pytest.skip("keeps no averages")
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.zero_()
        if name.endswith("running_var"):
            value.fill_(1)
    with torch.no_grad():
        for _ in range(3):
            network(x[0])
    if any(m for m in averaging(network) if isinstance(m, nn.BatchNorm2d)):
        return  # the numbers behind a variance differ between layers
    before = state(network)
    with averages_without_start(network, 3, N):
        corrected = evaluate(network, x[0], y[0], "running").loss
    assert same(before, network)
    expected = evaluate(network, x[0], y[0], "batch", batch_size=N).loss
    torch.testing.assert_close(corrected, expected)


def test_one_network_is_put_in_the_place_of_another(case):
    network, x, y = case
    if network.replicas == 1:
        pytest.skip("has no other place")
    write_replica(network, 2, read_replica(network, 0))
    losses = matrix_gradients(network, x[0], y[0])[1]
    torch.testing.assert_close(losses[2], losses[0])
    assert not torch.allclose(losses[1], losses[0])


def test_descent_is_torchs(case):
    network, x, y = case
    if not network.normalized():
        with pytest.raises(ValueError, match="no matrix of this network is normalised"):
            list(descent(network, [(x, y)], held(0.1)))
        return
    theirs = copy.deepcopy(network)
    x = x[0]
    moments = list(descent(network, [(x, y)] * 3, held(0.1)))
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1)
    for moment in moments:
        optimizer.zero_grad()
        logits = theirs(x)
        losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
        losses = losses.view_as(y).mean(1)
        torch.testing.assert_close(losses, moment.losses)
        losses.sum().backward()
        optimizer.step()
    for ours, other in zip(network.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, other)


def test_rules_turn_matrices_as_they_say(case):
    network, x, y = case
    if not network.normalized():
        pytest.skip("has no rates")
    ((moment,)) = list(descent(copy.deepcopy(network), [(x[0], y)], equalised(0.1)))
    turns = moment.learning_rates * moment.rates
    torch.testing.assert_close(turns, turns[:1].expand_as(turns))
    torch.testing.assert_close(turns[0], 0.1 * moment.rates.log().mean(0).exp())
    ((moment,)) = list(descent(copy.deepcopy(network), [(x[0], y)], tilted(0.1, 0.2)))
    steps = (moment.learning_rates * moment.rates).log().diff(dim=0)
    torch.testing.assert_close(steps, torch.full_like(steps, -0.2))
    ((moment,)) = list(descent(copy.deepcopy(network), [(x[0], y)], critical(1e9)))
    product = moment.learning_rates**2 * moment.rates.amax(0) * moment.rates.amin(0)
    torch.testing.assert_close(product, torch.ones_like(product))
    rates = effective_rates(network, x[0], y)
    assert rates.shape == (len(network.weight_matrices()) - 1, network.replicas)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(N, 2, dtype=torch.int64), "2 labels for samples"),
        (torch.zeros(N), "labels must be integers"),
        (torch.zeros(2, N, dtype=torch.int64), "expected labels of shape"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_words(case, labels, words):
    network, x, _ = case
    with pytest.raises(ValueError, match=words):
        batch_of(network, x[0], labels)


def test_averages_are_kept_also_after_an_error(case):
    network, x, _ = case
    before = state(network)
    with pytest.raises(RuntimeError, match="stop"), averages_kept(network, training=True):
        network(x[0])
        raise RuntimeError("stop")
    assert same(before, network)


def test_a_buffer_that_a_pass_replaces_comes_back_as_the_same_tensor():
    module = nn.BatchNorm1d(3)
    buffer = module.running_mean
    with averages_kept(module):
        buffer.add_(1)
        module.running_mean = torch.ones(3)
    assert module.running_mean is buffer and not buffer.any()


def test_a_module_may_say_itself_what_is_normalised():
    class Residual(Own):
        def normalized(self):
            return ["body.0.weight"]

    assert as_network(Own()).normalized() == ["body.0.weight", "body.4.weight"]
    assert as_network(Residual()).normalized() == ["body.0.weight"]
    assert copies(Residual, 1).normalized() == ["body.0.weight"]


def test_dropout_is_off_in_measurements():
    torch.manual_seed(0)
    network, x, y = copies(Own, 1), torch.randn(N, 16), torch.randint(CLASSES, (N,))
    once, again = (matrix_gradients(network, x, y) for _ in range(2))
    assert all(torch.equal(once[0][name], again[0][name]) for name in once[0])
    assert all(module.training for module in network.modules())
    assert not torch.equal(network(x), network(x)), "the control: in training it is on"


def test_networks_that_differ_in_shape_are_not_stacked():
    with pytest.raises(ValueError, match="differ"):
        stacked([nn.Linear(3, 2), nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="no module"):
        stacked([])
    network = stacked([nn.Linear(3, 2), nn.Linear(3, 2)])
    with pytest.raises(ValueError, match="3 batches for 2 networks"):
        network(torch.randn(3, 5, 3))
    with pytest.raises(ValueError, match="expected samples of 1 axes"):
        network(torch.randn(2, 5, 3, 3))


def test_a_checkpoint_that_keeps_averages_in_its_second_pass_moves_them_once():
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 7), nn.BatchNorm1d(7)]
    plain = nn.Sequential(*layers, nn.Linear(7, 3)).double()
    twice, once = copy.deepcopy(plain), copy.deepcopy(plain)
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 3
    F.cross_entropy(plain(x), y).backward()
    F.cross_entropy(checkpoint(twice, x, use_reentrant=False), y).backward()
    output = checkpoint(
        once,
        x,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), averages_kept(once)),
    )
    F.cross_entropy(output, y).backward()
    for name, expected in plain.named_buffers():
        assert torch.equal(once.get_buffer(name), expected), name
    torch.testing.assert_close(twice[1].running_mean, 1.9 * plain[1].running_mean)
    for name, expected in plain.named_parameters():
        assert torch.equal(once.get_parameter(name).grad, expected.grad), name
