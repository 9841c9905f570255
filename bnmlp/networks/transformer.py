r"""Transformers as replicas side by side, and what wide ones do at initialisation.

A block is attention followed by a perceptron, each with or without a skip connection. With
``norm="after"`` a normalisation without parameters follows every matrix, so that every matrix is
scale-invariant: queries and keys are normalised within their heads, everything else over the
width. With ``"before"`` the input of attention and perceptron is normalised (pre-norm), with
``"erf"`` an elementwise function stands in its place. :func:`forward_kernels` and
:func:`backward_kernels` follow covariances of tokens and of gradients through wide networks.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bnmlp.layers.normalization import rms_norm
from bnmlp.layers.seeds import random_source

MATRICES = ("query", "key", "value", "output", "up", "down")
NORMS = ("after", "before", "erf")
ATTENTIONS = ("softmax", "shaped")
SLOPE = math.sqrt(math.pi) / 2  # erf(SLOPE * x) has slope one at zero
Shapes = dict[str, tuple[tuple[int, ...], float]]  # and variances times the number of inputs
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

    position: Tensor
    hidden_tokens: Tensor
    centre: Tensor

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
        shapes: Shapes = dict.fromkeys(MATRICES[:4], (square, 1.0))
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

    def weight_matrices(self, of: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See :class:`bnmlp.networks.protocol.Network`: ``"block 1 query"`` and so on."""
        values = dict(self.named_parameters()) if of is None else of
        inner = {k: values[f"matrices.{k}"] for k in MATRICES if f"matrices.{k}" in values}
        blocks = {f"block {i + 1} {k}": inner[k][i] for i in range(self.depth) for k in inner}
        first = {"embedding": values["embedding"]} if "embedding" in values else {}
        return first | blocks | ({"last": values["last"]} if "last" in values else {})

    def normalized(self) -> list[str]:
        """See :class:`bnmlp.networks.protocol.Network`."""
        names = [f"block {i + 1} {k}" for i in range(self.depth) for k in MATRICES]
        return names if self.norm == "after" else []

    def replica_axis(self, name: str) -> int | None:
        """See :class:`bnmlp.networks.protocol.Network`."""
        if name in ("hidden_tokens", "centre"):
            return None
        return 1 if name.startswith("matrices.") else 0

    def streams(self, x: Tensor) -> list[Tensor]:
        """Tokens before each block, and behind the last.

        Args:
            x: Tokens of the input. Shape ``(n, T, in)`` or ``(R, n, T, in)``.

        Returns:
            One more than blocks. Each of shape ``(R, n, T, d)``.

        Raises:
            ValueError: If the tokens do not fit.
        """
        tokens, features = self.position.shape[-2], self.embedding.shape[-1]
        fits = x.ndim == 3 or (x.ndim == 4 and len(x) in (1, self.replicas))
        if not fits or x.shape[-2:] != (tokens, features):
            shape = f"n, {tokens}, {features})"
            raise ValueError(
                f"expected tokens of shape ({shape} or ({self.replicas}, {shape}, got "
                f"{tuple(x.shape)}; bnmlp.data.batches.patches makes tokens of images"
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


def by_kind(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of single matrices of blocks, gathered by the entries of ``MATRICES``.

    Args:
        found: By the names of :meth:`Transformer.weight_matrices`; others are left out.

    Returns:
        For each kind, of shape ``(depth, ...)``.
    """
    return {
        kind: torch.stack([v for name, v in found.items() if name.endswith(f" {kind}")])
        for kind in MATRICES
    }


def _check(norm: str, attention: str = "softmax") -> None:
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; use one of {', '.join(NORMS)}")
    if attention not in ATTENTIONS:
        raise ValueError(f"unknown attention {attention!r}; use one of {', '.join(ATTENTIONS)}")


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """Matrices ``(R, out, in)`` on ``(R, ..., in)``."""
    return torch.bmm(x.flatten(1, -2), weight.mT).unflatten(1, x.shape[1:-1])


def _normals(shapes: Shapes, seed: int, replica: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = random_source(seed, replica)
    return {
        k: (torch.randn(shape, generator=generator) * math.sqrt(variance / shape[-1])).to(dtype)
        for k, (shape, variance) in shapes.items()
    }
