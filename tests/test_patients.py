"""Networks that fail: built as the chapter says, cured as it says, and trained by plain steps."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnmlp import load_dataset
from bnmlp.book.patients import (
    PATIENTS,
    BareTransformer,
    calm_transformer,
    course,
    deep_perceptron,
    even_transformer,
    shape_perceptron,
)
from bnmlp.data.batches import epoch_batches


@pytest.fixture(scope="module")
def data():
    return load_dataset("mnist5k")


def normalized(h):
    return (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()


def test_the_perceptron_is_gaussian_matrices_norms_and_rectifiers():
    model = deep_perceptron(8, 50).double()
    x = torch.randn(20, 784, dtype=torch.float64)
    h = x
    for layer in model[:-1]:
        weight = layer[0].weight
        assert weight.var().item() * weight.shape[1] == pytest.approx(1, abs=0.15)
        h = normalized(h @ weight.mT).clamp(min=0)
    torch.testing.assert_close(model(x), h @ model[-1].weight.mT + model[-1].bias)


def test_its_cure_is_rotations_and_tanh_of_ever_smaller_numbers():
    model = deep_perceptron(8, 50)
    shape_perceptron(model)
    model = model.double()
    h = x = torch.randn(60, 784, dtype=torch.float64)
    for i, layer in enumerate(model[:-1], 1):
        spectrum = torch.linalg.svdvals(layer[0].weight)
        torch.testing.assert_close(spectrum, torch.ones_like(spectrum), atol=1e-5, rtol=0)
        h = torch.tanh(i**-0.4 * normalized(h @ layer[0].weight.mT))
    torch.testing.assert_close(model(x), h @ model[-1].weight.mT + model[-1].bias)


def test_averages_of_the_slow_resnet_have_a_tenth_of_the_usual_momentum():
    for name, momentum in (("resnet", 0.01), ("averaged resnet", 0.1)):
        norms = [m for m in PATIENTS[name].network(0).modules() if isinstance(m, nn.BatchNorm2d)]
        assert [norm.momentum for norm in norms] == [momentum] * 19


def by_hand(model, x):
    """A transformer token by token and head by head."""
    h = x @ model.embed.weight.mT + model.embed.bias + model.position
    for block in model.blocks:
        part = block.attention
        queries, keys, values = (
            h @ w.mT + b
            for w, b in zip(part.in_proj_weight.chunk(3), part.in_proj_bias.chunk(3), strict=True)
        )
        heads = []
        for q, k, v in zip(*(z.chunk(4, -1) for z in (queries, keys, values)), strict=True):
            heads.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)
        h = h + torch.cat(heads, -1) @ part.out_proj.weight.mT + part.out_proj.bias
        inner = h @ block.up.weight.mT + block.up.bias
        inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        h = h + inner @ block.down.weight.mT + block.down.bias
    return h.mean(1) @ model.head.weight.mT + model.head.bias


def test_the_transformer_adds_attention_and_perceptron_to_a_stream():
    model = BareTransformer(3, 8, tokens=5, features=6).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(model(x), by_hand(model, x))


def growth(model):
    """Nats by which the stream grows over the blocks."""
    sizes = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, x, out: sizes.append(out.std().item()))
    model(torch.randn(20, 16, 49))
    return math.log(sizes[-1] / sizes[0])


def test_its_cure_keeps_the_stream_at_its_size():
    model = BareTransformer(12, 64)
    assert growth(model) > 2, "the control"
    before = copy.deepcopy(model).state_dict()
    calm_transformer(model)
    assert 0 < growth(model) < 0.5
    for name, weight in model.state_dict().items():
        last = name.endswith(("out_proj.weight", "down.weight"))
        torch.testing.assert_close(weight, before[name] * (24**-0.5 if last else 1))


def test_the_factor_may_be_shared_by_both_matrices_of_a_branch():
    model = BareTransformer(12, 64)
    even_transformer(model)
    gains = [
        torch.linalg.svdvals(w) for w in (model.blocks[3].up.weight, model.blocks[3].down.weight)
    ]
    for spectrum in gains:
        torch.testing.assert_close(spectrum, torch.full_like(spectrum, 24**-0.25))
    assert 0 < growth(model) < 0.5


def test_training_is_plain_steps_and_averages_weights_where_asked(data):
    kept = replace(PATIENTS["averaged resnet"], averaged=0.6)
    x, y = kept.view(data.train_x), data.train_y
    average, losses = kept.train(kept.network(1), data, 3, seed=5)
    model = kept.network(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    expected, means = [], None
    for bx, by in epoch_batches(x, y, 64, 1, 3, 5):
        loss = F.cross_entropy(model(bx[0]), by[0])
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        now = [p.detach().clone() for p in model.parameters()]
        means = (
            now if means is None else [0.6 * m + 0.4 * p for m, p in zip(means, now, strict=True)]
        )
    assert losses == pytest.approx(expected, rel=1e-4)
    for found, mean in zip(average.parameters(), means, strict=True):
        torch.testing.assert_close(found.detach(), mean, rtol=1e-4, atol=1e-5)


def test_training_ends_at_the_first_loss_that_is_not_finite(data):
    patient = PATIENTS["transformer"]
    assert len(patient.train(patient.network(0), data, 9, 0)[1]) < 9
    cured = patient.network(0)
    patient.cures["cured"](cured, data.train_x)
    losses = patient.train(cured, data, 9, 0)[1]
    assert len(losses) == 9 and all(map(math.isfinite, losses)), "the control"


def test_a_row_of_a_late_cure_is_about_the_same_weights(data):
    patient = PATIENTS["resnet"]
    plain, cured = (course(patient, data, 4, 0, treatment) for treatment in ("none", "cured"))
    for key in ("steps", "loss", "accuracy_batch", "accuracy_recalibrated"):
        assert plain[key] == pytest.approx(cured[key], abs=1e-6), key
    assert cured["accuracy_running"] == cured["accuracy_recalibrated"] != plain["accuracy_running"]
    assert math.isnan(plain["predicted"]), "no theory of sums"


def test_a_row_of_an_early_cure_has_the_report_from_before_training(data):
    patient = replace(PATIENTS["perceptron"], build=lambda: deep_perceptron(20, 60))
    plain, cured = (course(patient, data, 2, 0, treatment) for treatment in ("none", "cured"))
    assert plain["low"] < plain["rate"] < plain["high"]
    assert plain["rate"] > 0.1 > abs(cured["rate"]), "what was measured"
    assert plain["predicted"] > 0.1 > cured["predicted"] > 0, "and what theory says"
    assert plain["steps"] == cured["steps"] == 2
