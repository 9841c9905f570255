"""What wide transformers do at initialisation: kernels forwards and backwards."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bnmlp.layers.seeds import random_source
from bnmlp.networks.transformer import SLOPE, _check
from bnmlp.theory.gaussian import correlation, length_products, relu_kernel, relu_slope


class Kernels(NamedTuple):
    """What :func:`forward_kernels` keeps of one block for the way back."""

    stream: tuple[Tensor, Tensor]  # covariances before attention and before the perceptron
    softmax: Tensor  # drawn softmax attention (draws, N, N)
    attention: Tensor  # the attention made of it
    mixed: Tensor  # covariance behind attention


def forward_kernels(
    first: Tensor,
    depth: int,
    *,
    samples: int = 1,
    norm: str = "after",
    skip: bool = True,
    attention: str = "softmax",
    causal: bool = False,
    draws: int = 16,
    seed: int = 0,
) -> tuple[list[Kernels], Tensor]:
    r"""Covariances of all tokens of a batch in wide transformers with many heads.

    An attention score is normal with covariance :math:`F_{ii'}F_{jj'}` if :math:`F` is the
    covariance of what enters. So attention matrices are drawn as the softmax of
    :math:`F^{1/2}ZF^{1/2}` and averaged over: equation :eq:`transformer-kernel`.

    Args:
        first: Covariance of the tokens before the first block, per feature; the T tokens of one
            sample follow each other. Shape ``(N, N)`` with N = samples * T.
        depth: Blocks.
        samples: Of the batch; attention stays within each.
        norm: As in :class:`bnmlp.networks.transformer.Transformer`.
        skip: As in :class:`bnmlp.networks.transformer.Transformer`.
        attention: As in :class:`bnmlp.networks.transformer.Transformer`.
        causal: As in :class:`bnmlp.networks.transformer.Transformer`.
        draws: Attention matrices to average over in each block.
        seed: Of these.

    Returns:
        One entry per block, and the covariance behind the last. Shape ``(N, N)``.

    Raises:
        ValueError: If a name is unknown or the samples do not divide N.
    """
    _check(norm, attention)
    size = len(first)
    if size % samples:
        raise ValueError(f"forward_kernels: {samples} samples do not divide {size} tokens")
    within = torch.ones(size // samples, size // samples, dtype=torch.bool)
    seen = torch.block_diag(*[within.tril() if causal else within] * samples)
    centre = torch.eye(size, dtype=torch.float64) - seen.double() / seen.sum(-1, keepdim=True)
    noise = random_source(seed)
    kept, c = [], first.double()
    for _ in range(depth):
        f = _inner_kernel(c, norm)
        values, vectors = torch.linalg.eigh(f)
        root = vectors * values.clamp_min(0).sqrt()
        z = torch.randn(draws, size, size, generator=noise, dtype=f.dtype)
        softmax = (root @ z @ root.mT).masked_fill(~seen, -math.inf).softmax(-1)
        a = softmax + centre if attention == "shaped" else softmax
        mixed = (a @ f @ a.mT).mean(0)
        between = (c if skip else 0) + _outer_kernel(mixed, norm)
        kept.append(Kernels((c, between), softmax, a, mixed))
        out = 2 * relu_kernel(_outer_kernel(_inner_kernel(between, norm), norm))
        c = (between if skip else 0) + _outer_kernel(out, norm)
    return kept, c


def backward_kernels(
    kept: list[Kernels], top: Tensor, *, norm: str = "after", skip: bool = True, shape: float = 2.0
) -> tuple[Tensor, Tensor]:
    r"""Gradients in wide transformers, from the covariances of :func:`forward_kernels`.

    Gradients count as independent of the weights that they pass. Each of the six matrices then
    hands back a Gram matrix of gradients over tokens, and its own squared gradient is the sum of
    that matrix times the covariance of what entered it.

    Args:
        kept: What the way forward kept.
        top: Gram matrix of the gradients of the tokens behind the last block. Shape ``(N, N)``.
        norm: As on the way forward.
        skip: As on the way forward.
        shape: Features inside a perceptron over width.

    Returns:
        Effective learning rates in the order of ``MATRICES``, shape ``(6, depth)``, and squared
        gradients of all tokens before each block and behind the last, shape ``(depth + 1,)``.

    Raises:
        ValueError: If the norm is unknown.
    """
    _check(norm)
    k = top.double()
    rates, sizes = [], [k.trace()]
    for (before, between), softmax, a, mixed in reversed(kept):
        f, d = _inner_kernel(between, norm), _inner_slope(between, norm)
        z = _outer_kernel(f, norm)
        p = k * _outer_slope(2 * relu_kernel(z), norm)
        down = shape / 2 * (p * relu_kernel(z)).sum()
        p = 2 * p * relu_slope(z)
        up = (p * f).sum() / shape
        k = (k if skip else 0) + p * d

        f, d = _inner_kernel(before, norm), _inner_slope(before, norm)
        p = k * _outer_slope(mixed, norm)
        output = (p * mixed).sum()
        parts = torch.stack([*_score_gradients(softmax, f, p), (a.mT @ p @ a).mean(0)])
        k = (k if skip else 0) + parts.sum(0) * d
        rates.append(torch.stack([*(parts * f).sum((-2, -1)), output, up, down]))
        sizes.append(k.trace())
    return torch.stack(rates[::-1], 1).clamp_min(0).sqrt(), torch.stack(sizes[::-1])


def _score_gradients(a: Tensor, f: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrices of the gradients of queries and keys, from those behind attention.

    From query i the output moves by sum_j A_ij (k_j . dq_i) (v_j - y_i), with the covariance
    F_jj' - (A F)_ij' - (A F)_i'j + (A F A^T)_ii' of v_j - y_i and v_j' - y_i'.

    Args:
        a: Attention. Shape ``(..., T, T)``.
        f: Gram matrices of the gradients behind attention. Shape ``(..., T, T)``.
        p: Gram matrix of what attention reads. Shape ``(..., T, T)``.

    Returns:
        Of the queries, of the keys.
    """
    af = a @ f
    afa = af @ a.mT
    cross = af**2 @ a.mT
    query = p * (a @ f**2 @ a.mT - cross - cross.mT + afa**2).mean(0)
    w = p * f
    wa = w @ a
    cross = a.mT @ (af * wa)
    key = (f * (a.mT @ wa) - cross - cross.mT + a.mT @ (w * afa) @ a).mean(0)
    return query, key


def token_kernel(x: Tensor) -> Tensor:
    """Covariance per feature of the tokens before the first block of a wide transformer.

    Args:
        x: Tokens. Shape ``(n, T, in)``.

    Returns:
        Cosines of the inputs, and one more for two tokens at one position. Shape ``(nT, nT)``.
    """
    u = F.normalize(x.double().flatten(0, 1), dim=-1)
    return u @ u.mT + torch.eye(x.shape[1], dtype=u.dtype).repeat(len(x), len(x))


def _inner_kernel(c: Tensor, norm: str) -> Tensor:
    if norm != "erf":
        return correlation(c)
    one = 1 + 2 * SLOPE**2 * c.diagonal()
    return 2 / math.pi * (2 * SLOPE**2 * c / (one[:, None] * one).sqrt()).arcsin()


def _inner_slope(c: Tensor, norm: str) -> Tensor:
    if norm != "erf":
        return 1 / length_products(c)
    one = 1 + 2 * SLOPE**2 * c.diagonal()
    return 4 * SLOPE**2 / math.pi / (one[:, None] * one - (2 * SLOPE**2 * c) ** 2).sqrt()


def _outer_kernel(c: Tensor, norm: str) -> Tensor:
    return correlation(c) if norm == "after" else c


def _outer_slope(c: Tensor, norm: str) -> Tensor:
    return 1 / length_products(c) if norm == "after" else torch.ones_like(c)
