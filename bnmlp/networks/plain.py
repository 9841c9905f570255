"""The network of the book as one would write it with PyTorch's own layers.

The tests compare every other path with it, and the book its speed.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.recipe import Recipe

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": nn.Identity(),
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(),
    "selu": nn.SELU(),
    "sin": torch.sin,
}


class HandWrittenNorm(nn.Module):
    """Normalisations PyTorch has no layer for; samples are rows here. ``dim`` 0 is the batch."""

    def __init__(
        self, width: int, dim: int, center: bool, unit: bool, affine: bool, eps: float
    ) -> None:
        super().__init__()
        self.dim, self.center, self.unit, self.eps = dim, center, unit, eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``(n, width)``."""
        if self.center:
            x = x - x.mean(self.dim, keepdim=True)
        energy = (x**2).sum(self.dim, keepdim=True)
        if not self.unit:
            energy = energy / x.shape[self.dim]
        x = x / (energy + self.eps) ** 0.5
        return x if self.weight is None or self.bias is None else x * self.weight + self.bias


class PlainNetwork(nn.Module):
    """One replica of a model as a loop over ``nn.Linear`` and ``nn.BatchNorm1d``.

    Args:
        model: Source of the choices, and of parameters and running averages, which are copied.
        replica: Which of its networks.
    """

    def __init__(self, model: BNMLP, replica: int = 0) -> None:
        super().__init__()
        self.recipe = recipe = model.recipe.subset([replica])
        features = (recipe.in_features,) + (recipe.width,) * recipe.depth
        self.linears = nn.ModuleList(
            nn.Linear(a, b, bias=recipe.bias)
            for a, b in zip(features[:-1], features[1:], strict=True)
        )
        self.norms = nn.ModuleList(_norm(recipe, model.momentum) for _ in range(recipe.depth))
        self.head = nn.Linear(recipe.width, recipe.out_features, bias=recipe.bias)
        self.to(model.input_weight)
        self.load_state_dict(_numbers(model, replica), strict=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, out)`` of samples ``(n, in)``."""
        act = ACTIVATIONS[str(self.recipe.activation)]
        layers = zip(self.linears, self.norms, self.recipe.layer_gains, strict=True)
        for linear, norm, (alpha,) in layers:
            x = linear(x)
            x = act(alpha * norm(x)) if self.recipe.order == "norm_act" else norm(act(alpha * x))
        return self.head(x)

    def gradient_norms(self, x: Tensor, y: Tensor) -> Tensor:
        """Frobenius norms of the gradients of all weight matrices, shape ``(depth + 1,)``."""
        loss = F.cross_entropy(self(x), y)
        weights = [p for name, p in self.named_parameters() if p.ndim == 2]
        return torch.stack([g.norm() for g in torch.autograd.grad(loss, weights)])


def _norm(recipe: Recipe, momentum: float) -> nn.Module:
    """A fresh normalisation layer."""
    width, eps, affine = recipe.width, recipe.eps, recipe.affine
    if recipe.norm == "none":
        return nn.Identity()
    if recipe.center and not recipe.unit_norm:
        if recipe.norm == "batch":
            return nn.BatchNorm1d(width, eps, momentum, affine=affine)
        return nn.LayerNorm(width, eps=eps, elementwise_affine=affine)
    dim = 0 if recipe.norm == "batch" else 1
    return HandWrittenNorm(width, dim, recipe.center, recipe.unit_norm, affine, eps)


def _numbers(model: BNMLP, r: int) -> dict[str, Tensor]:
    """Parameters and averages of one network, by their names in a :class:`PlainNetwork`."""
    weights = [model.input_weight[r], *model.hidden_weight[:, r]]
    numbers = {f"linears.{i}.weight": weight for i, weight in enumerate(weights)}
    numbers["head.weight"] = model.output_weight[r]
    if model.bias:
        numbers |= {f"linears.{i}.bias": bias for i, bias in enumerate(model.layer_bias[:, r])}
        numbers["head.bias"] = model.output_bias[r]
    norms: dict[str, Tensor] = {}
    if model.affine:
        norms |= {"weight": model.norm_weight, "bias": model.norm_bias}
    if model.norm == "batch":
        norms |= {"running_mean": model.running_mean, "running_var": model.running_var}
    for name, values in norms.items():
        numbers |= {f"norms.{i}.{name}": value for i, value in enumerate(values[:, r])}
    return numbers
