import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnmlp import BNMLP, evaluate, recalibrate
from bnmlp.measurements.recalibration import Moments, moments, recalibrate_module
from bnmlp.networks.protocol import stacked

pytestmark = pytest.mark.usefixtures("float64")


class Branched(nn.Module):
    """Norms of every kind that are registered in another order than they are called."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.last = nn.Linear(4, 3)
        self.two, self.one = norm(4), norm(4)
        self.convolutions = nn.ModuleList(nn.Conv2d(c, 4, 3, padding=1) for c in (2, 4))
        self.drop = nn.Dropout(0.5)

    def forward(self, x, times=1.0):
        h = F.relu(self.one(self.convolutions[0](times * x)))
        h = h + self.drop(self.two(self.convolutions[1](h)))
        return self.last(h.mean((2, 3)))


class Shared(nn.Module):
    """One norm for two layers, and another between them."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.norm, self.between = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, x):
        h = torch.tanh(self.norm(self.weights[0](x)))
        h = torch.tanh(self.between(self.weights[1](h)))
        return self.norm(self.weights[2](h))


def parts(x, *sizes):
    return list(x.split(sizes or (7, 12, 5)))


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_same_state(module, before):
    after = module.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def by_hand(module, batches):
    """Layer by layer for `Branched` with batch norm: each line sees all samples."""
    x = torch.cat(batches)
    one, two = module.convolutions[0], module.convolutions[1]
    z = one(x)
    expected = {"one": (z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0))}
    h = F.relu(F.batch_norm(z, None, None, module.one.weight, module.one.bias, training=True))
    z = two(h)
    return expected | {"two": (z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0))}


def perturbed(module):
    for p in module.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return module


def test_statistics_are_those_of_all_batches_behind_layers_that_use_theirs():
    module = perturbed(Branched())
    batches = parts(torch.randn(24, 2, 5, 5) * 2 + 1)
    recalibrate(module, batches)
    for name, (mean, var) in by_hand(module, batches).items():
        norm = getattr(module, name)
        torch.testing.assert_close((norm.running_mean, norm.running_var), (mean, var))
    assert module.one.num_batches_tracked == 0


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d])
def test_batches_one_tensor_and_other_wrappings_give_the_same(norm):
    module = perturbed(Branched(lambda c: norm(c, affine=True, track_running_stats=True)))
    x = torch.randn(24, 2, 5, 5)
    labelled = [(part, torch.zeros(len(part))) for part in parts(x)]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 7)
    forms = {
        "list": parts(x), "pairs": labelled, "generator": (part for part in parts(x)),
        "dicts": [{"x": part, "times": 1.0} for part in parts(x)],
        "arguments": [((part, 1.0), None) for part in parts(x)], "loader": loader,
    }  # fmt: skip
    recalibrate(module, x)
    expected = state(module)
    for name, form in forms.items():
        other = copy.deepcopy(module)
        nn.init.zeros_(other.one.running_var)
        recalibrate(other, form)
        torch.testing.assert_close(state(other), expected, msg=name)


def test_recalibrated_outputs_are_those_of_one_batch_in_training():
    module = perturbed(Branched()).train()
    module.drop.p = 0.0
    x = torch.randn(24, 2, 5, 5)
    one_batch = copy.deepcopy(module)(x)
    recalibrate(module, parts(x))
    torch.testing.assert_close(module.eval()(x), one_batch)
    worse = copy.deepcopy(module)
    recalibrate(worse, parts(x), exact=False)
    assert (worse(x) - one_batch).abs().max() > 1e-3, "the control: batches of their own differ"


def test_pooled_statistics_are_those_of_batches_that_normalise_themselves():
    module = perturbed(Branched()).train()
    module.drop.p = 0.0
    batches = parts(torch.randn(24, 2, 5, 5))
    seen = []
    handle = module.two.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for batch in batches:
        copy.deepcopy(module)(batch)
    handle.remove()
    recalibrate(module, batches, exact=False)
    z = torch.cat(seen)
    torch.testing.assert_close(module.two.running_var, z.var((0, 2, 3), correction=0))
    torch.testing.assert_close(module.two.running_mean, z.mean((0, 2, 3)))


def test_instance_norms_keep_the_mean_over_instances():
    module = nn.InstanceNorm1d(3, track_running_stats=True)
    x = torch.randn(10, 3, 7)
    recalibrate(module, parts(x, 4, 6))
    torch.testing.assert_close(module.running_mean, x.mean(-1).mean(0))
    torch.testing.assert_close(module.running_var, x.var(-1, correction=0).mean(0))
    recalibrate(module, x[0])  # without an axis of instances
    torch.testing.assert_close(module.running_var, x[0].var(-1, correction=0))


def test_a_norm_that_is_called_twice_keeps_what_both_calls_pool():
    module, x = perturbed(Shared()), torch.randn(30, 6) * 3
    for form in (x, parts(x, 10, 20)):
        recalibrate(module, form)
        norm, between = module.norm, module.between

        def own(z, norm=norm):
            return torch.tanh(F.batch_norm(z, None, None, norm.weight, norm.bias, training=True))

        first = module.weights[0](x)
        h = F.batch_norm(
            module.weights[1](own(first)), None, None, between.weight, between.bias, training=True
        )
        second = module.weights[2](torch.tanh(h))
        both = torch.cat([first, second])
        torch.testing.assert_close(norm.running_mean, both.mean(0))
        torch.testing.assert_close(norm.running_var, both.var(0, correction=0))
        # What comes between is measured behind the pooled statistics, which evaluation uses.
        z = module.weights[1](torch.tanh(norm.eval()(first)))
        torch.testing.assert_close(between.running_mean, z.mean(0))
        torch.testing.assert_close(between.running_var, z.var(0, correction=0))


def test_networks_side_by_side_are_recalibrated_as_each_alone():
    modules = [perturbed(Branched()) for _ in range(3)]
    network, x = stacked(modules, sample_ndim=3), torch.randn(24, 2, 5, 5)
    recalibrate(network, parts(x))
    for r, module in enumerate(modules):
        recalibrate(module, x)
        found = network.module.two.running_var[r]
        torch.testing.assert_close(found, module.two.running_var)


def test_batches_for_a_bnmlp_are_joined():
    model, x = BNMLP(6, 5, 4, 3, dtype=torch.float64), torch.randn(24, 6)
    other = copy.deepcopy(model)
    recalibrate(model, x)
    recalibrate(other, [(part, None) for part in parts(x)])
    assert_same_state(other, state(model))
    plain = BNMLP(6, 5, 4, 3, norm="layer", dtype=torch.float64)
    recalibrate(plain, x)  # nothing to do, and no error, as for networks of several kinds


def test_moments_pool_like_the_samples_behind_them():
    x = torch.randn(5, 40)
    a, b = (Moments(n.shape[1], n.mean(1), n.var(1, correction=0)) for n in x.split((10, 30), 1))
    both = a.pooled(b)
    assert both.count == 40
    torch.testing.assert_close((both.mean, both.var), (x.mean(1), x.var(1, correction=0)))


def images(dtype=torch.float32):
    """Channels whose mean is 0 to 1000 of their deviations, and one that is constant."""
    torch.manual_seed(0)
    means = torch.tensor([0, 0.1, 1, 3, 10, 100, 1000, 5])
    deviations = torch.tensor([1, 1e-3, 1e3, 1, 1, 1, 1, 0])
    x = (torch.randn(6, 8, 9, 11) + means[:, None, None]) * deviations[:, None, None]
    x[:, 7] = 5
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_of_images_are_those_of_all_numbers_of_a_channel(dtype):
    x, norm = images(dtype), nn.BatchNorm2d(8)
    rows = x.double().transpose(0, 1).reshape(8, -1).numpy()
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        found = moments(norm, given)
        assert found.count == rows.shape[1]
        off = np.abs(found.mean.numpy() - rows.mean(1))
        assert (off <= 1e-6 * (np.abs(rows.mean(1)) + rows.std(1))).all()
        np.testing.assert_allclose(found.var, rows.var(1), rtol=3e-6)


def test_moments_of_images_say_what_is_not_finite():
    x = images()
    x[2, 1, 3, 4], x[0, 3, 0, 0] = torch.inf, torch.nan
    found = moments(nn.BatchNorm2d(8), x)
    expected = [i not in (1, 3) for i in range(8)]
    assert found.var.isfinite().tolist() == expected
    assert found.mean.isfinite().tolist() == expected


def test_moments_of_images_of_networks_side_by_side():
    x, norm = torch.stack([images(), 2 * images()]), nn.BatchNorm2d(8)
    found = torch.vmap(lambda one: moments(norm, one).var)(x)
    expected = torch.stack([moments(norm, one).var for one in x])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def everything(module):
    """What a call might leave behind."""
    return (
        [m.training for m in module.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        [p.grad for p in module.parameters()],
        [p.clone().tolist() for p in module.parameters()],
        module.one.momentum, module.one.num_batches_tracked.item(),
        torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(),
    )  # fmt: skip


def test_nothing_else_changes_and_nothing_at_all_after_an_error():
    module = perturbed(Branched())
    module.one.eval()
    module.one.momentum = None
    batches = [torch.randn(4, 2, 5, 5), torch.randn(4, 3, 5, 5)]
    shuffled = torch.utils.data.DataLoader(torch.randn(24, 2, 5, 5), 7, shuffle=True)
    before = everything(module)
    recalibrate(module, shuffled)
    assert everything(module) == before
    assert module.two.running_mean.abs().min() > 0
    kept = state(module)
    with pytest.raises(RuntimeError, match="channels"):
        recalibrate(module, batches)
    assert everything(module) == before
    assert_same_state(module, kept)


def test_a_network_that_swallows_errors_does_not_swallow_the_stop():
    class Careful(Branched):
        def forward(self, x):
            try:
                return super().forward(x)
            except Exception:
                return x

    module = perturbed(Careful())
    x = torch.randn(24, 2, 5, 5)
    recalibrate(module, parts(x))
    expected = by_hand(module, [x])["two"][1]
    torch.testing.assert_close(module.two.running_var, expected)


def test_what_is_inside_wrappers_is_recalibrated():
    module, x = perturbed(Branched()), torch.randn(24, 2, 5, 5)
    expected = by_hand(module, [x])["two"][1]
    recalibrate(nn.DataParallel(module), parts(x))
    torch.testing.assert_close(module.two.running_var, expected)
    module.two.reset_running_stats()
    recalibrate(torch.compile(module, backend="eager"), parts(x))
    torch.testing.assert_close(module.two.running_var, expected)


def test_hooks_are_called_in_parts_that_were_compiled_before():
    module, x = perturbed(Branched()).eval(), torch.randn(24, 2, 5, 5)
    expected = by_hand(module, [x])["two"][1]
    whole = nn.Sequential(torch.compile(module, backend="eager"))
    whole(x)
    recalibrate(whole, parts(x))
    torch.testing.assert_close(module.two.running_var, expected)
    torch._dynamo.reset()


def test_batches_may_take_different_ways_only_where_they_are_pooled():
    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.few, self.many = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.few(x) if len(x) < 10 else self.many(x)

    module, x = Choosing(), torch.randn(24, 2)
    before = state(module)
    with pytest.raises(ValueError, match=r"different orders.*exact=False"):
        recalibrate(module, parts(x))
    assert_same_state(module, before)
    recalibrate(module, parts(x), exact=False)
    torch.testing.assert_close(module.many.running_mean, x[7:19].mean(0))


def test_what_cannot_be_recalibrated_is_refused_in_words():
    x = torch.randn(8, 6)
    norm = nn.BatchNorm1d(6)
    for module, data, words in (
        (nn.Linear(6, 2), x, "has no batch normalisation"),
        (nn.BatchNorm1d(6, track_running_stats=False), x, "track_running_stats=False"),
        (norm, [], "no batches"),
        (norm, iter([]), "no batches"),
        (norm, x[:1], "recalibration with a batch of 1 sample.*at least 2"),
        (norm, [x[:1]], "a batch of 1 sample"),
        (norm, torch.full((4, 6), torch.nan), "of the module are not finite"),
        (nn.Sequential(norm), torch.full((4, 6), torch.inf), "of 0 are not finite"),
        (nn.LazyBatchNorm1d(), x, "put one batch through"),
        (BNMLP(6, 5, 4, 3), [], "no batches"),
    ):
        before = {} if "Lazy" in type(module).__name__ else state(module)
        with pytest.raises(ValueError, match=words):
            recalibrate(module, data)
        assert_same_state(module, before)
    recalibrate(norm, [x[:1], x[1:2]])  # two samples are enough, in one batch or not
    torch.testing.assert_close(norm.running_mean, x[:2].mean(0))
    with pytest.raises(ValueError, match="a batch of 1 sample"):
        recalibrate(norm, [x[:1], x[1:2]], exact=False)
    lazy = nn.LazyBatchNorm1d()
    lazy(x)
    recalibrate(lazy, x)
    torch.testing.assert_close(lazy.running_mean, x.mean(0))


def test_modules_without_averages_are_left_alone_inside_the_package():
    module = nn.Linear(3, 2)
    before = state(module)
    recalibrate_module(module, [torch.randn(4, 3)])
    assert_same_state(module, before)
    y = torch.tensor([0, 1, 0, 1])
    x = torch.randn(4, 3)
    assert evaluate(module, x, y, "recalibrated", calibration=x).loss == pytest.approx(
        F.cross_entropy(module(x), y).item()
    )
