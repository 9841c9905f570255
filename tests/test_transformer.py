import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bnmlp.data.batches import patches
from bnmlp.measurements.alignment import token_dispersion
from bnmlp.measurements.rates import matrix_rates
from bnmlp.networks.losses import matrix_gradients
from bnmlp.networks.transformer import MATRICES, Transformer, by_kind
from bnmlp.theory.attention import backward_kernels, forward_kernels, token_kernel
from bnmlp.theory.gaussian import correlation, relu_kernel, relu_slope

double = {"dtype": torch.float64}


def small(**options):
    options = {"tokens": 5, "heads": 2, "replicas": 3, **double} | options
    return Transformer(7, 8, 3, 4, **options)


def batch():
    return torch.randn(6, 5, 7, **double), torch.randint(4, (6,))


def cosines(model, x, y):
    """Of every matrix and its gradient."""
    gradients = by_kind(matrix_gradients(model, x, y)[0])
    return {
        k: F.cosine_similarity(gradients[k].flatten(-2), w.detach().flatten(-2), dim=-1)
        for k, w in model.matrices.items()
    }


@pytest.mark.parametrize(
    "options", [{}, {"skip": False}, {"attention": "shaped"}, {"causal": True}]
)
def test_with_a_norm_after_every_matrix_gradients_are_orthogonal_to_weights(options):
    x, y = batch()
    for name, cosine in cosines(small(**options), x, y).items():
        if options.get("skip", True) or name not in ("query", "key"):  # those are rounding there
            assert cosine.abs().max() < 1e-12, name


@pytest.mark.parametrize("norm", ["before", "erf"])
def test_without_it_they_are_not_but_pairs_agree(norm):
    x, y = batch()
    model = small(norm=norm)
    assert all(c.abs().max() > 1e-3 for c in cosines(model, x, y).values())
    gradients = by_kind(matrix_gradients(model, x, y)[0])
    inner = {k: (gradients[k] * w).sum((-2, -1)) for k, w in model.matrices.items()}
    for one, two in (("query", "key"), ("value", "output"), ("up", "down")):
        torch.testing.assert_close(inner[one], inner[two])


def test_before_a_final_norm_all_branches_together_have_no_scale():
    x, y = batch()
    model = small(norm="before")
    gradients = by_kind(matrix_gradients(model, x, y)[0])
    streams = model.streams(x)
    logits = model.last.unsqueeze(1) @ model.inner(streams[-1], last=True).mean(-2).unsqueeze(-1)
    loss = F.cross_entropy(logits.flatten(0, 1).squeeze(-1), y.repeat(3), reduction="sum") / len(y)
    (g,) = torch.autograd.grad(loss, streams[0])
    total = (g * streams[0]).sum((1, 2, 3))
    for k in ("output", "down"):
        total = total + (gradients[k] * model.matrices[k]).sum((0, 2, 3))
    assert total.abs().max() < 1e-12


def test_a_replica_is_the_network_of_its_seed():
    x, _ = batch()
    torch.testing.assert_close(small()(x)[:2], small(replicas=2)(x))


def test_attention_is_that_of_torch():
    model = small(norm="before", replicas=1)
    x, _ = batch()
    stream = model.streams(x)[0]
    weights = [model.matrices[k][0] for k in MATRICES[:4]]
    h = F.rms_norm(stream[0], (8,))
    q, k, v = ((h @ w[0].mT).unflatten(-1, (2, 4)).transpose(1, 2) for w in weights[:3])
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(model.attend(stream, *weights)[0], expected @ weights[3][0].mT)


def test_a_causal_token_does_not_see_those_behind_it():
    x, _ = batch()
    later = x.clone()
    later[:, 3:] += 1
    for attention in ("softmax", "shaped"):
        model = small(causal=True, attention=attention)
        one, two = (model.streams(z)[-1] for z in (x, later))
        torch.testing.assert_close(one[..., :3, :], two[..., :3, :])
        assert (one[..., 3:, :] - two[..., 3:, :]).abs().max() > 0.1


def test_shaped_attention_without_scores_is_the_identity():
    model = small(attention="shaped")
    q, k = torch.zeros(2, 3, 6, 2, 5, 4, **double)
    torch.testing.assert_close(model.weights(q, k), torch.eye(5, **double).expand(3, 6, 2, 5, 5))


def test_dispersion_is_zero_for_equal_directions_and_known_for_orthogonal_ones():
    one = torch.randn(4, 1, 8, **double)
    assert token_dispersion(one * torch.rand(4, 5, 1, **double)).max() < 1e-15
    orthogonal = torch.linalg.qr(torch.randn(8, 5, **double))[0].mT
    assert token_dispersion(orthogonal) == pytest.approx(math.sqrt(4) / 5)


def test_patches_tile_the_image():
    image = torch.arange(36).float()
    found = patches(image, 3)
    assert found.shape == (4, 9)
    assert found[1].tolist() == [3, 4, 5, 9, 10, 11, 15, 16, 17]
    with pytest.raises(ValueError, match="not a square of patches"):
        patches(image, 4)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        patches(image, 0)


def test_kernels_of_relu_are_those_of_samples():
    a = torch.randn(3, 3, **double)
    c = a @ a.mT
    z = a @ torch.randn(3, 400_000, **double)
    assert (relu_kernel(c) - z.relu() @ z.relu().mT / z.shape[1]).abs().max() < 0.05
    positive = (z > 0).double()
    assert (relu_slope(c) - positive @ positive.mT / z.shape[1]).abs().max() < 0.01


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "after"},
        {"norm": "before"},
        {"norm": "erf"},
        {"skip": False, "attention": "shaped"},
        {"causal": True},
    ],
)
def test_kernels_are_those_of_wide_networks(options):
    x = torch.randn(2, 5, 7, **double)
    model = Transformer(7, 256, 3, 4, tokens=5, heads=8, replicas=6, **double, **options)
    kept, last = forward_kernels(token_kernel(x), 3, samples=2, draws=400, **options)
    streams = model.streams(x)
    flat = streams[-1].flatten(1, 2)
    measured = (flat @ flat.mT / 256).mean(0)
    assert (correlation(measured) - correlation(last)).abs().max() < 0.12
    random = torch.randn_like(streams[-1])
    wanted = [streams[0], *(model.matrices[k] for k in MATRICES)]
    g, *gradients = torch.autograd.grad(streams[-1], wanted, random)
    growth = (g.square().sum((1, 2, 3)) / random.square().sum((1, 2, 3))).log().mean()
    options = {k: v for k, v in options.items() if k in ("norm", "skip")}
    rates, sizes = backward_kernels(kept, torch.eye(10), **options)
    named = {f"matrices.{k}": g for k, g in zip(MATRICES, gradients, strict=True)}
    rates_of = by_kind(matrix_rates(model, model.weight_matrices(named)))
    measured = torch.stack(list(rates_of.values())) / math.sqrt(256)
    off = (measured / rates.unsqueeze(-1)).log().mean(-1)  # a factor of two would be 0.35 or more
    assert off.abs().max() < 0.25, off
    assert growth == pytest.approx((sizes[0] / sizes[-1]).log().item(), abs=0.3)


def test_shaped_attention_of_kernels_subtracts_the_uniform_one_to_rounding():
    one = forward_kernels(torch.eye(3), 1, attention="shaped", draws=2)[0][0]
    expected = (torch.eye(3, **double) - 1 / 3).expand(2, 3, 3)
    torch.testing.assert_close(one.attention - one.softmax, expected, rtol=0, atol=1e-14)


def test_rates_are_gradient_over_weight():
    x, y = batch()
    model = small()
    gradients, losses = matrix_gradients(model, x, y)
    rates = by_kind(matrix_rates(model, gradients))
    assert {k: r.shape for k, r in rates.items()} == dict.fromkeys(MATRICES, (3, 3))
    g, w = gradients["block 2 value"][2], model.matrices["value"][1, 2]
    assert rates["value"][1, 2] == pytest.approx((g.norm() / w.norm()).item())
    expected = F.cross_entropy(model(x)[1], y)
    assert losses[1] == pytest.approx(expected.item())


def test_errors_name_the_cause():
    with pytest.raises(ValueError, match="unknown norm"):
        small(norm="batch")
    with pytest.raises(ValueError, match="unknown attention"):
        small(attention="linear")
    with pytest.raises(ValueError, match="do not divide a width"):
        small(heads=3)
    with pytest.raises(ValueError, match="at least 1"):
        small(heads=0)
    with pytest.raises(ValueError, match="do not divide 5 tokens"):
        forward_kernels(torch.eye(5), 1, samples=2)
    with pytest.raises(ValueError, match="unknown norm"):
        backward_kernels(forward_kernels(torch.eye(5), 1)[0], torch.eye(5), norm="post")
    x, _ = batch()
    for tokens in (x[0], x[:, :1], x[..., :6], x.expand(2, 6, 5, 7)):
        with pytest.raises(ValueError, match=r"\(n, 5, 7\) or \(3, n, 5, 7\)"):
            small()(tokens)


def test_tokens_without_an_axis_of_samples_are_not_taken_for_samples():
    model = Transformer(7, 8, 1, 2, tokens=3, heads=2, replicas=3)
    for shape in ((3, 7), (7,), (2, 3, 3, 7), (1, 1, 1, 3, 7)):
        with pytest.raises(ValueError, match=r"expected tokens of shape \(n, 3, 7\)"):
            model(torch.randn(shape))
    x = torch.randn(3, 3, 7)  # three samples, and the same ones for every network
    torch.testing.assert_close(model(x), model(x.expand(3, -1, -1, -1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numpy_integers_and_half_precision_are_accepted(dtype):
    sizes = {"tokens": 4, "heads": 2, "replicas": 3, "seed": 1}
    numpy = {k: np.int64(v) for k, v in sizes.items()}
    plain = Transformer(6, 8, 2, 3, **sizes)
    model = Transformer(*map(np.int32, (6, 8, 2, 3)), dtype=dtype, **numpy)
    x = torch.randn(5, 4, 6)
    eps = max(torch.finfo(dtype).eps, torch.finfo(x.dtype).eps)
    found = model(x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), plain(x), rtol=0, atol=10 * eps)
    gradients, losses = matrix_gradients(model, x.to(dtype), torch.randint(3, (5,)))
    assert losses.isfinite().all() and all(g.isfinite().all() for g in gradients.values())
