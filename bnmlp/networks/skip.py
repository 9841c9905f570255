"""Networks of ReLU layers, plain, batch-normalised or with skip connections, side by side."""

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnmlp.layers.seeds import random_source
from bnmlp.networks.protocol import layered_axis, layered_matrices

VARIANTS = ("plain", "batch", "skip", "single")


class SkipMLP(nn.Module):
    """R independent networks for ``torch.optim``, with the defaults of Keras.

    ``"plain"`` stacks linear layer and ReLU, ``"batch"`` puts batch normalisation between them,
    and ``"skip"`` adds the input of every two such layers to their output before its ReLU;
    ``"single"`` adds the input of the second of them only, as the study's program does. Weights are
    uniform with Glorot's variance, biases zero.

    Args:
        depth: Linear layers, the one of the logits included. With skip connections layers come in
            pairs after the first, so an odd depth gets one more.
        variant: ``"plain"``, ``"batch"``, ``"skip"`` or ``"single"``.
        in_features: Length of a sample.
        width: Features of each hidden layer.
        out_features: Number of logits.
        replicas: R.
        init_gain: Factor on the weights of hidden layers; the root of two is He's initialisation.
        momentum: Weight of the newest batch in the running averages.
        eps: Added to variances.
        seed: The weights of a network depend on this and its number alone.
        dtype: Type of the parameters.

    Raises:
        ValueError: If the variant is unknown, the depth is below 2 or another size below 1.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        depth: int,
        variant: str = "skip",
        *,
        in_features: int = 784,
        width: int = 128,
        out_features: int = 10,
        replicas: int = 1,
        init_gain: float = 1.0,
        momentum: float = 0.01,
        eps: float = 1e-3,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; use one of {', '.join(VARIANTS)}")
        if depth < 2:
            raise ValueError(f"SkipMLP: depth counts the logits' layer, so at least 2, got {depth}")
        if min(in_features, width, out_features, replicas) < 1:
            raise ValueError("SkipMLP: features, width and replicas must be at least 1")
        self.variant, self.replicas, self.momentum, self.eps = variant, replicas, momentum, eps
        self.bridged = variant in ("skip", "single")
        self.layers = 2 * ((depth - 1) // 2) + 1 if self.bridged else depth - 1
        drawn = []
        for r in range(replicas):
            generator = random_source(seed, r)
            drawn.append([
                glorot_uniform(*shape, generator).to(dtype)
                for shape in (
                    (1, width, in_features), (self.layers - 1, width, width),
                    (1, out_features, width),
                )
            ])  # fmt: skip
        first, hidden, last = (torch.stack(w, 1) for w in zip(*drawn, strict=True))
        self.input_weight = nn.Parameter(first[0] * init_gain)  # (R, width, in)
        self.hidden_weight = nn.Parameter(hidden * init_gain)  # (layers - 1, R, width, width)
        self.output_weight = nn.Parameter(last[0])  # (R, out, width)
        each = (self.layers, replicas, width)
        self.layer_bias = nn.Parameter(torch.zeros(each, dtype=dtype))
        self.output_bias = nn.Parameter(torch.zeros(replicas, out_features, dtype=dtype))
        if variant != "plain":
            self.norm_weight = nn.Parameter(torch.ones(each, dtype=dtype))
            self.norm_bias = nn.Parameter(torch.zeros(each, dtype=dtype))
            self.register_buffer("running_mean", torch.zeros(each, dtype=dtype))
            self.register_buffer("running_var", torch.ones(each, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(R, n, out)`` of samples ``(n, in)`` or ``(R, n, in)``."""
        for h in self.representations(x):
            pass  # only the last is needed
        return torch.baddbmm(self.output_bias.unsqueeze(-1), self.output_weight, h).mT

    def weight_matrices(self, of: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See :class:`bnmlp.networks.protocol.Network`: ``"layer 1"`` to the last, ``"output"``."""
        return layered_matrices(dict(self.named_parameters()) if of is None else of)

    def normalized(self) -> list[str]:
        """See :class:`bnmlp.networks.protocol.Network`."""
        names = [f"layer {i}" for i in range(1, self.layers + 1)]
        return [] if self.variant == "plain" else names

    def replica_axis(self, name: str) -> int:
        """See :class:`bnmlp.networks.protocol.Network`."""
        return layered_axis(name)

    def representations(self, x: Tensor) -> Iterator[Tensor]:
        """Outputs of the hidden layers one after the other.

        Args:
            x: Samples. Shape ``(n, in)`` or ``(R, n, in)``.

        Yields:
            Each of shape ``(R, width, n)``.

        Raises:
            ValueError: If samples do not fit, at the first layer.
        """
        features = self.input_weight.shape[-1]
        fits = x.ndim == 2 or (x.ndim == 3 and len(x) in (1, self.replicas))
        if not fits or x.shape[-1] != features:
            raise ValueError(
                f"expected samples of shape (n, {features}) or ({self.replicas}, n, {features}), "
                f"got {tuple(x.shape)}; flatten images first"
            )
        h = trunk = x.mT.expand(self.replicas, -1, -1)
        weights = (self.input_weight, *self.hidden_weight.unbind())
        for i, (weight, bias) in enumerate(zip(weights, self.layer_bias.unbind(), strict=True)):
            z = self.normalize(i, torch.baddbmm(bias.unsqueeze(-1), weight, h))
            if self.bridged and i > 0 and i % 2 == 0:
                z = z + (trunk if self.variant == "skip" else h)
            h = F.relu(z)
            if i % 2 == 0:
                trunk = h
            yield h

    def normalize(self, i: int, z: Tensor) -> Tensor:
        """Batch normalisation of hidden layer ``i``; moves its averages in training mode."""
        if self.variant == "plain":
            return z
        state = (self.running_mean[i], self.running_var[i], self.norm_weight[i], self.norm_bias[i])
        mean, var, weight, bias = (s.flatten() for s in state)
        channels = z.flatten(0, 1).unsqueeze(0)  # (1, R * width, n): PyTorch's channels come second
        normal = F.batch_norm(
            channels, mean, var, weight, bias, self.training, self.momentum, self.eps
        )
        return normal.view_as(z)


def glorot_uniform(layers: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Uniform matrices of variance 2 / (rows + columns). Shape ``(layers, rows, columns)``."""
    bound = math.sqrt(6 / (rows + columns))
    return torch.empty(layers, rows, columns).uniform_(-bound, bound, generator=generator)
