r"""Transformers as replicas side by side, and what wide ones do at initialisation.

A block is attention followed by a perceptron, each with or without a skip connection. With
``norm="after"`` a normalisation without parameters follows every matrix, so that every matrix is
scale-invariant: queries and keys are normalised within their heads, everything else over the
width. With ``"before"`` the input of attention and perceptron is normalised (pre-norm), with
``"erf"`` an elementwise function stands in its place. :func:`forward_kernels` and
:func:`backward_kernels` follow covariances of tokens and of gradients through wide networks.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnmlp.seeds import random_source

MATRICES = ("query", "key", "value", "output", "up", "down")
NORMS = ("after", "before", "erf")
ATTENTIONS = ("softmax", "shaped")
SLOPE = math.sqrt(math.pi) / 2  # erf(SLOPE * x) has slope one at zero
HEAD = 0.1  # of the last matrix, relative to the others: logits start near zero


class Transformer(nn.Module):
    r"""R independent transformers, with fixed random positions and the mean over tokens read out.

    Weights are normal, of variance one over the number of inputs (twice that behind ReLU).
    ``"shaped"`` attention is :math:`I + A - U` with the softmax attention :math:`A` and the uniform
    one :math:`U` over the tokens that a token sees :cite:p:`noci2023shaped,he2024simplifying`.

    Args:
        in_features: Length of a token of the input.
        width: d, length of a token inside.
        depth: Blocks.
        out_features: Number of logits.
        tokens: T, tokens of a sample.
        heads: Of every attention; divides the width.
        hidden: Features inside a perceptron; twice the width if not given.
        norm: ``"after"`` every matrix, ``"before"`` attention and perceptron, or ``"erf"``.
        skip: Add the input of attention and of perceptron to what they return, or do not.
        attention: ``"softmax"`` or ``"shaped"``.
        causal: A token sees itself and those before it only.
        replicas: R.
        seed: The weights of a network depend on this and its number alone.
        dtype: Type of the parameters.

    Raises:
        ValueError: If a name is unknown, a size is below one or heads do not divide the width.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        depth: int,
        out_features: int,
        *,
        tokens: int,
        heads: int = 4,
        hidden: int | None = None,
        norm: str = "after",
        skip: bool = True,
        attention: str = "softmax",
        causal: bool = False,
        replicas: int = 1,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check(norm, attention)
        hidden = 2 * width if hidden is None else hidden
        if min(in_features, width, depth, out_features, tokens, heads, hidden, replicas) < 1:
            raise ValueError("Transformer: all sizes must be at least 1")
        if width % heads:
            raise ValueError(f"Transformer: {heads} heads do not divide a width of {width}")
        self.depth, self.heads, self.replicas = depth, heads, replicas
        self.norm, self.skip, self.attention = norm, skip, attention
        square = (depth, width, width)
        shapes = dict.fromkeys(MATRICES[:4], (square, 1.0))
        shapes |= {"up": ((depth, hidden, width), 1.0), "down": ((depth, width, hidden), 2.0)}
        shapes |= {"embedding": ((width, in_features), 1.0), "position": ((tokens, width), width)}
        shapes |= {"logits": ((out_features, width), HEAD**2)}
        drawn = [_normals(shapes, seed, r, dtype) for r in range(replicas)]
        stacked = {k: torch.stack([w[k] for w in drawn], dim=-3) for k in shapes}
        self.matrices = nn.ParameterDict({k: stacked[k] for k in MATRICES})  # (depth, R, out, in)
        self.embedding = nn.Parameter(stacked["embedding"])  # (R, d, in)
        self.last = nn.Parameter(stacked["logits"])  # (R, out, d)
        self.register_buffer("position", stacked["position"].unsqueeze(1))  # (R, 1, T, d)
        seen = torch.ones(tokens, tokens, dtype=torch.bool)
        seen = seen.tril() if causal else seen
        self.register_buffer("hidden_tokens", ~seen)
        centre = torch.eye(tokens, dtype=dtype) - seen.to(dtype) / seen.sum(-1, keepdim=True)
        self.register_buffer("centre", centre)  # I - U

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(R, n, out)`` of tokens ``(n, T, in)`` or ``(R, n, T, in)``."""
        return _linear(self.inner(self.streams(x)[-1], last=True).mean(-2), self.last)

    def streams(self, x: Tensor) -> list[Tensor]:
        """Tokens before each block, and behind the last. Shapes ``(R, n, T, d)``.

        Raises:
            ValueError: If the tokens do not fit.
        """
        tokens, features = self.position.shape[-2], self.embedding.shape[-1]
        fits = x.ndim == 3 or (x.ndim == 4 and len(x) in (1, self.replicas))
        if not fits or x.shape[-2:] != (tokens, features):
            shape = f"n, {tokens}, {features})"
            raise ValueError(
                f"expected tokens of shape ({shape} or ({self.replicas}, {shape}, got "
                f"{tuple(x.shape)}; bnmlp.attention.patches makes tokens of images"
            )
        x = rms_norm(_linear(x.expand(self.replicas, *x.shape[-3:]), self.embedding))
        found = [x + self.position]
        for weights in zip(*(self.matrices[k].unbind() for k in MATRICES), strict=True):
            x = self.add(found[-1], self.attend(found[-1], *weights[:4]))
            found.append(self.add(x, self.perceive(x, *weights[4:])))
        return found

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """The branch on the stream, or in its place."""
        return x + branch if self.skip else branch

    def inner(self, x: Tensor, last: bool = False) -> Tensor:
        """What a branch, or the last matrix, makes of the tokens before its matrices."""
        if self.norm == "erf":
            return torch.erf(SLOPE * x)
        return rms_norm(x) if last or self.norm == "before" else x

    def outer(self, z: Tensor) -> Tensor:
        """What follows a matrix."""
        return rms_norm(z) if self.norm == "after" else z

    def attend(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor
    ) -> Tensor:
        """Branch of attention. Shapes ``(R, n, T, d)`` and, of matrices, ``(R, d, d)``."""
        x = self.inner(x)
        q, k = (self.outer(self.split(_linear(x, w))) for w in (query, key))
        v = self.split(self.outer(_linear(x, value)))
        y = self.weights(q, k) @ v  # (R, n, heads, T, d / heads)
        return self.outer(_linear(y.transpose(-3, -2).flatten(-2), output))

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Attention of queries to keys. Shapes ``(..., T, d / heads)`` to ``(..., T, T)``."""
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        a = scores.masked_fill(self.hidden_tokens, -math.inf).softmax(-1)
        return a + self.centre if self.attention == "shaped" else a

    def split(self, z: Tensor) -> Tensor:
        """Features into heads: ``(R, n, T, d)`` to ``(R, n, heads, T, d / heads)``."""
        return z.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def perceive(self, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """Branch of the perceptron, which sees each token alone."""
        h = self.outer(_linear(self.inner(x), up)).relu()
        return self.outer(_linear(h, down))


def rms_norm(x: Tensor) -> Tensor:
    """Vectors along the last axis, scaled to mean square one."""
    return F.rms_norm(x, x.shape[-1:])


def patches(x: Tensor, side: int = 7) -> Tensor:
    """Square images as sequences of square patches.

    Args:
        x: Images as rows. Shape ``(..., pixels)``.
        side: Of a patch; divides that of the images.

    Returns:
        Shape ``(..., T, side * side)``.

    Raises:
        ValueError: If rows are not squares of whole patches.
    """
    if side < 1:
        raise ValueError(f"patches: their side must be at least 1, got {side}")
    across = round(x.shape[-1] ** 0.5) // side
    if (across * side) ** 2 != x.shape[-1]:
        raise ValueError(f"{x.shape[-1]} pixels are not a square of patches of {side} x {side}")
    grid = x.unflatten(-1, (across, side, across, side)).transpose(-3, -2)
    return grid.flatten(-4, -3).flatten(-2)


def matrix_gradients(model: Transformer, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of each network's mean cross entropy, and that loss.

    Args:
        model: R networks.
        x: Tokens. Shape ``(n, T, in)`` or ``(R, n, T, in)``.
        y: Labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        Gradients by name, those of ``MATRICES`` and ``"embedding"`` and ``"last"``, in the shapes
        of the weights, and losses of shape ``(R,)``.

    Raises:
        ValueError: If the tokens do not fit.
    """
    named = {**model.matrices, "embedding": model.embedding, "last": model.last}
    logits = model(x)
    labels = y.expand(logits.shape[:2])
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    losses = losses.view_as(labels).mean(-1)
    found = torch.autograd.grad(losses.sum(), list(named.values()))
    return dict(zip(named, found, strict=True)), losses.detach()


def matrix_rates(model: Transformer, gradients: dict[str, Tensor]) -> Tensor:
    r"""Effective learning rates :math:`\lVert g\rVert/\lVert W\rVert` of all matrices of blocks.

    Args:
        model: R networks.
        gradients: As :func:`matrix_gradients` returns them.

    Returns:
        In the order of ``MATRICES``, float64. Shape ``(6, depth, R)``.
    """
    sizes = [
        [t[k].detach().double().square().sum((-2, -1)).sqrt() for k in MATRICES]
        for t in (gradients, model.matrices)
    ]
    return torch.stack(sizes[0]) / torch.stack(sizes[1])


def token_dispersion(x: Tensor) -> Tensor:
    r"""How far the tokens of a sample are from pointing the same way, exact near zero.

    :math:`\eta = \lVert PCP\rVert_F/T` with the cosines :math:`C` of T tokens and the projection
    :math:`P` that subtracts their mean: equation :eq:`transformer-dispersion`.

    Args:
        x: Shape ``(..., T, d)``.

    Returns:
        Zero where all tokens of a sample point the same way, below one. Shape ``(...)``.
    """
    u = F.normalize(x, dim=-1)
    u = u - u.mean(-2, keepdim=True)  # no cancellation
    return (u @ u.mT).square().sum((-2, -1)).sqrt() / x.shape[-2]


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
        norm: As in :class:`Transformer`.
        skip: As in :class:`Transformer`.
        attention: As in :class:`Transformer`.
        causal: As in :class:`Transformer`.
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
    """Covariance per feature of the tokens before the first block of a wide :class:`Transformer`.

    Args:
        x: Tokens. Shape ``(n, T, in)``.

    Returns:
        Cosines of the inputs, and one more for two tokens at one position. Shape ``(nT, nT)``.
    """
    u = F.normalize(x.double().flatten(0, 1), dim=-1)
    return u @ u.mT + torch.eye(x.shape[1], dtype=u.dtype).repeat(len(x), len(x))


def relu_kernel(c: Tensor) -> Tensor:
    """Mean product of ReLUs of normal variables with this covariance. Shape ``(..., N, N)``.

    Nan where a variance is zero.
    """
    r = correlation(c)
    angle = r.arccos()
    lengths = _lengths(c)
    return lengths * ((1 - r**2).clamp_min(0).sqrt() + (math.pi - angle) * r) / (2 * math.pi)


def relu_slope(c: Tensor) -> Tensor:
    """Probability that both variables are positive. Shape ``(..., N, N)``."""
    return (math.pi - correlation(c).arccos()) / (2 * math.pi)


def correlation(c: Tensor) -> Tensor:
    """A covariance scaled to ones on its diagonal, which is positive. Shape ``(..., N, N)``."""
    r = (c / _lengths(c)).clamp(-1, 1)
    return r - torch.diag_embed(r.diagonal(dim1=-2, dim2=-1) - 1)


def _lengths(c: Tensor) -> Tensor:
    root = c.diagonal(dim1=-2, dim2=-1).sqrt()
    return root.unsqueeze(-1) * root.unsqueeze(-2)


def _inner_kernel(c: Tensor, norm: str) -> Tensor:
    if norm != "erf":
        return correlation(c)
    one = 1 + 2 * SLOPE**2 * c.diagonal()
    return 2 / math.pi * (2 * SLOPE**2 * c / (one[:, None] * one).sqrt()).arcsin()


def _inner_slope(c: Tensor, norm: str) -> Tensor:
    if norm != "erf":
        return 1 / _lengths(c)
    one = 1 + 2 * SLOPE**2 * c.diagonal()
    return 4 * SLOPE**2 / math.pi / (one[:, None] * one - (2 * SLOPE**2 * c) ** 2).sqrt()


def _outer_kernel(c: Tensor, norm: str) -> Tensor:
    return correlation(c) if norm == "after" else c


def _outer_slope(c: Tensor, norm: str) -> Tensor:
    return 1 / _lengths(c) if norm == "after" else torch.ones_like(c)


def _check(norm: str, attention: str = "softmax") -> None:
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; use one of {', '.join(NORMS)}")
    if attention not in ATTENTIONS:
        raise ValueError(f"unknown attention {attention!r}; use one of {', '.join(ATTENTIONS)}")


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """Matrices ``(R, out, in)`` on ``(R, ..., in)``."""
    return torch.bmm(x.flatten(1, -2), weight.mT).unflatten(1, x.shape[1:-1])


def _normals(shapes: dict, seed: int, replica: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = random_source(seed, replica)
    return {
        k: (torch.randn(shape, generator=generator) * math.sqrt(variance / shape[-1])).to(dtype)
        for k, (shape, variance) in shapes.items()
    }
