import collections
import copy
import math
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnmlp import load_dataset, recalibrate, shape_
from bnmlp.diagnosis.chain import stretches
from bnmlp.diagnosis.statistics import compare, findings_of_costs
from bnmlp.networks.convolutional import ResNet
from bnmlp.networks.protocol import Stacked

DATA = load_dataset("mnist5k")
TEST = DATA.test_x[:400], DATA.test_y[:400]


def deep(depth, activation=nn.Tanh, width=64, momentum=0.1):
    layers = []
    for i in range(depth):
        norm = nn.BatchNorm1d(width, momentum=momentum)
        layers += [nn.Linear(784 if i == 0 else width, width, bias=False), norm, activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def trained(model, steps, seed=0, shape=(784,)):
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(steps):
        x, y = DATA.batch(100, seed=1000 * seed + step)
        optimizer.zero_grad()
        F.cross_entropy(model(x.view(-1, *shape)), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def failing():
    """Forty layers whose averages remember their first value."""
    torch.manual_seed(0)
    return trained(deep(40, momentum=0.01), 60)


@pytest.fixture(scope="module")
def healthy():
    torch.manual_seed(0)
    return trained(deep(5), 60)


def kinds(found):
    return {finding.kind for finding in found.findings}


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_a_network_that_evaluation_takes_to_chance_is_found_and_cured(failing):
    model = copy.deepcopy(failing)
    before = compare(model, *TEST)
    worst = before.findings[0]
    assert (worst.kind, worst.severity) == ("running-statistics-fail", "broken")
    assert before.summary["accuracy_running"] < 0.25
    assert before.summary["accuracy_recalibrated"] > before.summary["accuracy_running"] + 0.2
    assert worst.chapter == "training/running-statistics" and "recalibrate" in worst.advice
    assert "statistics-young" in kinds(before)
    assert before.layers[0]["memory"] == pytest.approx(0.99**60)
    recalibrate(model, DATA.train_x.split(500))
    after = compare(model, *TEST)
    assert not after.findings or kinds(after) == {"statistics-young"}
    assert after.summary["accuracy_running"] > before.summary["accuracy_running"] + 0.2
    assert abs(after.summary["spread_lost"]) < 0.1 < 3 < before.summary["spread_lost"]


def test_the_theory_predicts_the_lost_spread_from_the_averages(failing):
    found = compare(failing, *TEST)
    assert found.summary["assumption"] is None
    assert found.summary["spread_lost_predicted"] == pytest.approx(
        found.summary["spread_lost"], rel=0.1
    )
    for row in found.layers:
        assert row["log_spread_predicted"] == pytest.approx(row["log_spread"], abs=0.6)
    ratios = [math.log(row["variance_ratio_mean"]) / 2 for row in found.layers]
    linear = sum(ratios) + found.summary["spread_lost"]
    assert abs(linear) > 10, "the control: the sum of the layers' errors, without the activation"


def test_weights_that_have_learnt_without_averages_are_no_new_network(healthy):
    model = copy.deepcopy(healthy)  # as an average of parameters alone is
    for norm in model[1::3]:
        norm.reset_running_stats()
    found = compare(model, *TEST)
    severities = {f.kind: f.severity for f in found.findings}
    assert severities["running-statistics-fail"] in ("serious", "broken")
    assert severities["statistics-never-updated"] == "serious"
    for seed in range(5):
        torch.manual_seed(seed)
        fresh = compare(deep(5, nn.ReLU), *TEST)
        assert {f.severity for f in fresh.findings} <= {"note"}, "the control: just made"


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_it_does_so_for_activations_that_are_not_odd(activation):
    torch.manual_seed(0)
    found = compare(trained(deep(12, activation, momentum=0.01), 40), *TEST).summary
    assert found["spread_lost"] > 2
    assert found["spread_lost_predicted"] == pytest.approx(found["spread_lost"], rel=0.25)


def test_the_control_a_healthy_network_has_no_findings(healthy):
    found = compare(healthy, *TEST)
    assert found.findings == []
    assert abs(found.summary["spread_lost"]) < 0.1
    assert all(row["mean_error"] < 0.1 for row in found.layers)


@pytest.mark.parametrize("factor", [1e-7, 1e7])
def test_findings_do_not_depend_on_the_unit_of_the_loss(failing, healthy, factor):
    def loss(output, y):
        return factor * F.cross_entropy(output, y)

    for model in (failing, healthy):
        plain, scaled = compare(model, *TEST), compare(model, *TEST, loss)
        assert [(f.kind, f.severity) for f in plain.findings] == [
            (f.kind, f.severity) for f in scaled.findings
        ]
        assert scaled.summary["loss_running"] == pytest.approx(
            factor * plain.summary["loss_running"], rel=1e-4
        )


class Small(nn.Module):
    """Two norms, one in a branch; the second activation is a function."""

    def __init__(self, inplace=False):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.3)
        self.relu = nn.ReLU(inplace)
        self.second, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(3, 4)

    def forward(self, x, scale=1.0):
        h = self.relu(self.norm(self.first(scale * x)))
        h = h + torch.tanh(self.other(self.second(h)))
        return self.last(self.drop(h.mean((2, 3))))


def small(**options):
    module = Small(**options).double()
    for norm in (module.norm, module.other):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        norm.num_batches_tracked.fill_(100)
    return module, torch.randn(20, 1, 6, 6, dtype=torch.float64), torch.arange(20) % 4


def test_rows_and_summary_are_what_they_say():
    module, x, y = small()
    found = compare(module, x, y)
    z = module.first(x)
    mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
    fixed = module.norm.running_var + module.norm.eps
    row = found.layers[0]
    assert row["name"] == "norm" and row["kind"] == "BatchNorm2d"
    assert (row["numbers"], row["channels"], row["momentum"]) == (20 * 16, 3, 0.3)
    error = ((mean - module.norm.running_mean).square() / fixed).mean()
    assert row["mean_error"] == pytest.approx(error.item())
    assert row["variance_ratio"] == pytest.approx((var / fixed).median().item(), rel=1e-3)
    assert row["variance_ratio_high"] == pytest.approx((var / fixed).max().item(), rel=1e-3)
    assert row["memory"] == pytest.approx(0.7**100)
    assert row["noise"] == pytest.approx((1 + 0.3 / 1.7) / 320)
    model = copy.deepcopy(module).eval()
    other = model.second(F.relu(model.norm(z)))
    fixed = model.other.running_var + model.other.eps
    offset = ((other.mean((0, 2, 3)) - model.other.running_mean).square() / fixed).mean()
    assert found.layers[1]["offset"] == pytest.approx(offset.item())
    summary = found.summary
    assert summary["loss_running"] == pytest.approx(F.cross_entropy(model(x), y).item())
    spread = model(x).var(0, correction=0).mean().log().item() / 2
    assert summary["log_spread_running"] == pytest.approx(spread)
    right = (model(x).argmax(1) == y).double().mean().item()
    assert summary["accuracy_running"] == pytest.approx(right)
    model.train().drop.eval()
    loss = F.cross_entropy(copy.deepcopy(model)(x), y).item()
    assert summary["loss_batch"] == pytest.approx(loss)


def test_no_sample_is_judged_with_statistics_that_it_is_part_of():
    module, x, y = small()
    model, logits = copy.deepcopy(module).eval(), torch.empty(20, 4, dtype=torch.float64)
    for judged, others in ((x[::2], x[1::2]), (x[1::2], x[::2])):
        recalibrate(model, others)
        logits[0 if judged is x[::2] else 1 :: 2] = model(judged)
    recalibrate(model, x[1::2])
    logits[::2] = model(x[::2])
    recalibrate(model, x[::2])
    logits[1::2] = model(x[1::2])
    found = compare(module, x, y).summary
    assert found["loss_recalibrated"] == pytest.approx(F.cross_entropy(logits, y).item())
    more = torch.randn(50, 1, 6, 6, dtype=torch.float64)
    recalibrate(model, more)
    for calibration in (more, [(part, None) for part in more.split(20)]):
        found = compare(module, x, y, calibration=calibration).summary
        assert found["loss_recalibrated"] == pytest.approx(F.cross_entropy(model(x), y).item())


def everything(module):
    return (
        {k: v.tolist() for k, v in module.state_dict().items()},
        [m.training for m in module.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        [(p.grad, p.requires_grad) for p in module.parameters()],
        torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(),
    )  # fmt: skip


@pytest.mark.parametrize("inplace", [False, True])
def test_nothing_is_left_behind_also_after_an_error(inplace):
    module, x, y = small(inplace=inplace)
    module.train().norm.eval()
    before = everything(module)
    compare(module, x, y)
    assert everything(module) == before

    def failing_loss(output, y):
        torch.manual_seed(7)
        module.eval()(x).sum().backward()
        raise RuntimeError("stop")

    found = compare(module, x, y, failing_loss).summary
    assert found["unscored"] == "loss_fn raised RuntimeError: stop" and found["loss_batch"] is None
    assert everything(module) == before
    handle = module.second.register_forward_hook(failing_loss_after(1))
    with pytest.raises(RuntimeError, match="second"):
        compare(module, x, y)
    handle.remove()
    assert everything(module) == before


def contrastive(output, y):
    """A loss with the size of its batch built in, which tells how far apart samples are."""
    return torch.linalg.matrix_norm(output @ output.mT - 9 * torch.eye(20, dtype=output.dtype))


def test_a_loss_that_takes_no_parts_is_given_all_samples():
    module, x, y = small()
    found = compare(module, x, y, contrastive).summary
    assert found["unscored"] is None
    model, logits = copy.deepcopy(module).eval(), torch.empty(20, 4, dtype=torch.float64)
    assert found["loss_running"] == pytest.approx(contrastive(model(x), y).item())
    for half in (0, 1):
        recalibrate(model, x[1 - half :: 2])
        logits[half::2] = model(x[half::2]).detach()
    assert found["loss_recalibrated"] == pytest.approx(contrastive(logits, y).item())
    plain = compare(module, x, y).summary
    assert found["accuracy_recalibrated"] == plain["accuracy_recalibrated"]


def test_such_a_loss_still_tells_a_network_that_evaluation_takes_to_chance(failing):
    def whole(output, y):
        return F.cross_entropy(output, y) if len(output) == 400 else output[400]

    found = compare(failing, *TEST, whole)
    assert found.findings[0].kind == "running-statistics-fail"
    assert found.summary["sure"] > 4


def test_a_loss_may_differentiate_draw_and_overwrite():
    module, x, y = small()

    def penalised(output, y):
        loss = F.cross_entropy(output, y)
        (gradient,) = torch.autograd.grad(loss, output, create_graph=True)
        output.data.mul_(0)
        return loss + gradient.square().sum() + 0.1 * torch.rand(())

    first, second = (compare(module, x, y, penalised).summary for _ in range(2))
    assert first["unscored"] is None and first == second
    logits = copy.deepcopy(module).eval()(x)
    gradient = (logits.softmax(1) - F.one_hot(y, 4)) / 2  # of the mean over two samples
    with torch.random.fork_rng():
        drawn = torch.stack([torch.rand(()) for _ in range(10)]).mean()
    expected = F.cross_entropy(logits, y) + gradient.square().sum() / 10 + 0.1 * drawn
    assert first["loss_running"] == pytest.approx(expected.item())


def failing_loss_after(times):
    count = iter(range(times))

    def hook(*_):
        if next(count, None) is None:
            raise RuntimeError("the second pass")

    return hook


def test_inputs_and_targets_of_many_forms():
    module, x, y = small()
    expected = compare(module, x, y).summary
    for given in ((x, 1.0), {"x": x, "scale": 1.0}):
        assert compare(module, given, y).summary == expected
    alone = compare(module, x).summary
    assert alone["loss_running"] is None and alone["accuracy_running"] is None
    assert alone["spread_lost"] == expected["spread_lost"]
    numbers = compare(module, x, torch.randn(20, 4, dtype=torch.float64)).summary
    assert numbers["loss_running"] > 0 and numbers["accuracy_running"] is None
    nested = nn.Sequential(module)
    nested.forward = lambda x: {"logits": module(x)}
    assert compare(nested, x, y, lambda out, y: F.cross_entropy(out["logits"], y)).summary[
        "loss_running"
    ] == pytest.approx(expected["loss_running"])
    compiled = torch.compile(module, backend="eager")
    compiled.eval()(x)
    assert compare(compiled, x, y).summary["loss_running"] == pytest.approx(
        expected["loss_running"]
    )
    tokens = nn.Sequential(nn.Conv1d(2, 5, 1), nn.BatchNorm1d(5))  # classes on the second axis
    found = compare(tokens, torch.randn(6, 2, 7), torch.randint(5, (6, 7))).summary
    assert found["accuracy_batch"] is not None


def test_what_has_no_loss_is_compared_without_and_says_why():
    module, x, y = small()
    expected = compare(module, x, y).summary
    assert expected["unscored"] is None

    class Said(nn.Module):
        def __init__(self, form):
            super().__init__()
            self.module, self.form = module, form

        def forward(self, x):
            return self.form(self.module(x))

    Pair = collections.namedtuple("Pair", ["first", "logits"])
    for form in (
        lambda z: {"loss": z.sum(), "logits": z},
        lambda z: collections.OrderedDict(logits=z, more=(z, z)),
        lambda z: (z, z.sum()),
    ):
        assert compare(Said(form), x, y).summary["loss_batch"] == expected["loss_batch"]
    named = compare(Said(lambda z: Pair(z.sum(), z)), x, y,
                    lambda out, y: F.cross_entropy(out.logits, y))  # fmt: skip
    assert named.summary["loss_recalibrated"] == expected["loss_recalibrated"]
    for targets, words in (
        (torch.zeros(20, 3, dtype=torch.int64), r"output of shape \(20, 4\) and targets of shape"),
        (torch.zeros(10, dtype=torch.int64), "targets of shape"),
        (torch.zeros(20, 3), "targets of shape"),
        ({"label": y}, "targets of type dict"),
    ):
        found = compare(module, x, targets).summary
        assert re.search(words, found["unscored"])
        assert found["loss_running"] is None
        assert found["spread_lost"] == expected["spread_lost"]
    summed = compare(Said(lambda z: z.sum()), x, y).summary
    assert summed["unscored"] == "an output of type Tensor has no row for each sample"
    assert summed["spread_lost"] is None

    class Sixteen(Said):
        def forward(self, x):
            return self.module(x).view(20, 4)

    built_in = compare(Sixteen(None), x, y).summary
    assert built_in["loss_recalibrated"] is None
    assert built_in["loss_running"] == pytest.approx(expected["loss_running"])


def test_a_module_without_averages_has_nothing_to_compare():
    x = torch.randn(5, 3)
    assert compare(nn.Linear(3, 2), x) is None
    assert compare(nn.BatchNorm1d(3, track_running_stats=False), x) is None


def test_several_networks_in_one_are_refused_in_words():
    with pytest.raises(ValueError, match="averages of all its networks"):
        compare(Stacked([nn.BatchNorm1d(3), nn.BatchNorm1d(3)]), torch.randn(5, 3))


def norms(**changes):
    """Two norms whose averages fit, and a change to the second."""
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3), nn.BatchNorm1d(3))
    x = torch.randn(64, 3)
    recalibrate(module, x)
    for norm in (module[0], module[3]):
        norm.num_batches_tracked.fill_(1000)
    for name, value in changes.items():
        if isinstance(getattr(module[3], name), torch.Tensor):
            getattr(module[3], name).copy_(torch.as_tensor(value))
        else:
            setattr(module[3], name, value)
    return module, x


RULES = {
    "statistics-not-finite": ({"running_mean": [0.0, math.nan, math.inf]}, {"3": 2}),
    "statistics-negative": ({"running_var": [1.0, -1.0, 1.0]}, {"3": 1}),
    "statistics-young": ({"num_batches_tracked": 20}, {"3": 0.9**20}),
    "statistics-never-updated": (
        {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0}, {"3": 0}),
    "statistics-cumulative": ({"momentum": None}, {"3": 1000}),
    "statistics-mixed-modes": ({"training": False}, ["3"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", RULES)
def test_each_fault_of_the_averages_is_found_where_it_is(kind):
    changes, evidence = RULES[kind]
    module, x = norms(**changes)
    found = compare(module, x, torch.arange(64) % 3)
    (finding,) = [f for f in found.findings if f.kind == kind]
    (value,) = finding.evidence.values()
    assert value == (pytest.approx(evidence) if isinstance(evidence, dict) else evidence)
    assert "3" in finding.sentence
    assert kind not in kinds(compare(*norms(), torch.arange(64) % 3)), "the control"


def test_the_theory_stops_at_negative_variances_however_far_off_the_means():
    module, x = norms(running_var=[1.0, -1.0, 1.0], running_mean=[0.0, 5.0, 0.0])
    found = compare(module, x, torch.arange(64) % 3)
    assert found.layers[1]["mean_error"] < 0
    assert found.summary["assumption"] == "running variances of 3 are negative"
    assert found.layers[0]["log_spread_predicted"] is not None
    assert found.layers[1]["log_spread_predicted"] is None


def test_averages_that_are_not_finite_break_evaluation_and_nothing_else():
    module, x = norms(running_var=[1.0, math.nan, 1.0])
    found = compare(module, x, torch.arange(64) % 3)
    assert found.summary["loss_running"] is None and found.summary["loss_recalibrated"] > 0
    words = [f.sentence for f in found.findings if f.kind == "running-statistics-fail"]
    assert "is not finite with running averages" in words[0] or "Accuracy" in words[0]
    assert found.layers[1]["mean_error"] is None
    assert found.summary["assumption"] == "the statistics of 3 are not finite"


def test_a_single_number_for_each_channel_is_found_without_training():
    module, _ = norms()
    found = compare(module, torch.randn(1, 3), torch.tensor([0]))
    assert "statistics-one-number" in kinds(found)
    assert found.findings[0].severity == "broken"
    assert found.summary["loss_batch"] is None and found.summary["loss_running"] > 0
    few = compare(module, torch.randn(6, 3), torch.arange(6) % 3)
    assert "statistics-few-numbers" in kinds(few)


def test_one_norm_for_two_distributions_is_found():
    class Twice(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.norm, self.shift = nn.BatchNorm1d(3), shift

        def forward(self, x):
            return self.norm(self.norm(x) + self.shift)

    x = torch.randn(64, 3)
    for shift, expected in ((3.0, {"statistics-reused"}), (0.0, set())):
        module = Twice(shift)
        recalibrate(module, x)
        module.norm.num_batches_tracked.fill_(1000)
        found = compare(module, x)
        assert [row["name"] for row in found.layers] == ["norm", "norm#2"]
        assert kinds(found) - {"logit-spread"} == expected


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm, nn.InstanceNorm2d, nn.LazyBatchNorm2d])
def test_norms_of_other_kinds(norm):
    lazy = norm is nn.LazyBatchNorm2d
    norm = norm() if lazy else norm(3, track_running_stats=True)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.Flatten(), nn.Linear(48, 3))
    x = torch.randn(20, 1, 6, 6)
    if lazy:
        with pytest.raises(ValueError, match="put one batch through"):
            compare(module, x)
    module(x)
    found = compare(module, x)
    z = module[0](x)
    mean = z.mean((0, 2, 3))
    error = ((mean - norm.running_mean).square() / (norm.running_var + norm.eps)).mean()
    assert found.layers[0]["mean_error"] == pytest.approx(error.item(), rel=1e-4)
    stopped = found.summary["assumption"]
    assert (stopped is None) == (not isinstance(norm, nn.InstanceNorm2d))


def test_what_the_theory_does_not_describe_is_named():
    def obstacle(between):
        class Middle(nn.Module):
            def forward(self, x):
                return between(x)

        mid = nn.Linear(4, 4, bias=False)
        module = nn.Sequential(nn.BatchNorm1d(4), Middle(), mid, nn.BatchNorm1d(4))
        return compare(module, torch.randn(9, 4)).summary["assumption"]

    assert obstacle(torch.tanh) is None and obstacle(F.hardswish) is None
    assert obstacle(lambda x: F.gelu(0.3 * x, approximate="tanh")) is None
    assert "a shortcut" in obstacle(lambda x: x + torch.tanh(x))
    assert "mul of two tensors" in obstacle(lambda x: x * torch.sigmoid(x))
    assert "softmax" in obstacle(lambda x: x.softmax(-1))
    model = ResNet(1, 2, in_channels=1)
    found = compare(model, torch.randn(8, 1, 8, 8), torch.arange(8)).summary
    assert found["assumption"].startswith("between blocks.0.two.1 and blocks.1.one.1 two tensors")
    late = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Tanh(), nn.BatchNorm1d(4))
    assert compare(late, torch.randn(9, 4)).summary["assumption"] == (
        "between 0 and 3 tanh stands between the map and the norm"
    )
    direct = nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.BatchNorm1d(4))
    assert "no map mixes" in compare(direct, torch.randn(9, 4)).summary["assumption"]


def test_activations_are_replayed_as_they_are_called():
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4), nn.BatchNorm1d(4),
                           nn.LeakyReLU(0.3, inplace=True), nn.Linear(4, 2))  # fmt: skip
    shape_(module, 0.5, gain=0.7, exclude=["4"])
    first, second = [
        p for p in stretches(module.eval(), [module[0], module[3]], torch.randn(5, 4))
    ][1:]
    x = torch.randn(7, dtype=torch.float64)
    kept = x.clone()
    torch.testing.assert_close(first.activation(x), torch.tanh(0.7 * x))
    torch.testing.assert_close(second.activation(x), F.leaky_relu(x, 0.3))
    assert torch.equal(x, kept)


def test_a_real_resnet_whose_weights_are_averaged_is_cured_by_recalibration():
    torch.manual_seed(0)
    model, x = ResNet(1, 4, in_channels=1), DATA.test_x[:300].view(-1, 1, 28, 28)[..., ::2, ::2]
    averaged = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(60):
        pixels, y = DATA.batch(64, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(pixels.view(-1, 1, 28, 28)[..., ::2, ::2]), y).backward()
        optimizer.step()
        averaged.update_parameters(model)
    y = DATA.test_y[:300]
    before = compare(averaged, x, y)
    assert before.findings[0].kind == "running-statistics-fail"
    recalibrate(averaged, DATA.train_x[:1000].view(-1, 1, 28, 28)[..., ::2, ::2])
    after = compare(averaged, x, y)
    assert "running-statistics-fail" not in kinds(after)
    gained = after.summary["accuracy_running"] - before.summary["accuracy_running"]
    assert gained > 0.15, (before.summary, after.summary)


def test_a_worse_loss_at_the_same_accuracy_is_a_note_that_quotes_the_loss():
    labels = torch.arange(100) % 10
    same = dict.fromkeys(("accuracy_batch", "accuracy_running", "accuracy_recalibrated"), 0.91)
    losses = {"loss_batch": 0.30, "loss_running": 0.36, "loss_recalibrated": 0.30, "sure": 9.0}
    unknown = {"spread_lost": None, "spread_lost_predicted": None}
    (found,) = findings_of_costs(same | losses | unknown, labels)
    assert found.severity == "note" and found.sentence.startswith("The loss is 0.36 with running")
    fewer = same | {"accuracy_running": 0.70}
    (found,) = findings_of_costs(fewer | losses | unknown, labels)
    assert found.severity == "serious" and found.sentence.startswith("Accuracy is 0.7 with running")
