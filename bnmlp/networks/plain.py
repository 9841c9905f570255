"""The network of the book as one would write it with PyTorch's own layers.

The tests compare every other path with it, and the book its speed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnmlp.networks.mlp import BNMLP

ACTIVATIONS = {
    "identity": nn.Identity(),
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(),
    "selu": nn.SELU(),
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
        return x if self.weight is None else x * self.weight + self.bias


class PlainNetwork(nn.Module):
    """One replica of a model as a loop over ``nn.Linear`` and ``nn.BatchNorm1d``.

    Args:
        model: Source of the choices, and of parameters and running averages, which are copied.
            Activation and gains are those it has at each call.
        replica: Which of its networks.
    """

    def __init__(self, model: BNMLP, replica: int = 0) -> None:
        super().__init__()
        self.model, self.replica = model, replica
        features = (model.in_features,) + (model.width,) * model.depth
        bias = model.layer_bias is not None
        self.linears = nn.ModuleList(
            nn.Linear(a, b, bias=bias) for a, b in zip(features[:-1], features[1:], strict=True)
        )
        self.norms = nn.ModuleList(self.norm(model) for _ in range(model.depth))
        self.head = nn.Linear(model.width, model.out_features, bias=bias)
        self.to(model.input_weight)
        with torch.no_grad():
            weights = [model.input_weight[replica], *model.hidden_weight[:, replica]]
            for i, (linear, norm, w) in enumerate(
                zip(self.linears, self.norms, weights, strict=True)
            ):
                linear.weight.copy_(w)
                if bias:
                    linear.bias.copy_(model.layer_bias[i, replica])
                if model.norm_weight is not None and model.norm != "none":
                    norm.weight.copy_(model.norm_weight[i, replica])
                    norm.bias.copy_(model.norm_bias[i, replica])
                if isinstance(norm, nn.BatchNorm1d):
                    norm.running_mean.copy_(model.running_mean[i, replica])
                    norm.running_var.copy_(model.running_var[i, replica])
            self.head.weight.copy_(model.output_weight[replica])
            if bias:
                self.head.bias.copy_(model.output_bias[replica])

    @staticmethod
    def norm(model: BNMLP) -> nn.Module:
        """A fresh normalisation layer of the model's kind."""
        if model.norm == "none":
            return nn.Identity()
        if model.center and not model.unit_norm:
            if model.norm == "batch":
                return nn.BatchNorm1d(model.width, model.eps, model.momentum, affine=model.affine)
            return nn.LayerNorm(model.width, eps=model.eps, elementwise_affine=model.affine)
        dim = 0 if model.norm == "batch" else 1
        return HandWrittenNorm(
            model.width, dim, model.center, model.unit_norm, model.affine, model.eps
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, out)`` of samples ``(n, in)``."""
        name = self.model.activation
        name = name[self.replica] if isinstance(name, tuple) else name
        act = torch.sin if name == "sin" else ACTIVATIONS[name]
        for i, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            gain = self.model.gains[i]
            alpha = gain[self.replica].item() if isinstance(gain, Tensor) else gain
            x = linear(x)
            x = act(alpha * norm(x)) if self.model.order == "norm_act" else norm(act(alpha * x))
        return self.head(x)

    def gradient_norms(self, x: Tensor, y: Tensor) -> Tensor:
        """Frobenius norms of the gradients of all weight matrices, shape ``(depth + 1,)``."""
        loss = F.cross_entropy(self(x), y)
        weights = [*(linear.weight for linear in self.linears), self.head.weight]
        return torch.stack([g.norm() for g in torch.autograd.grad(loss, weights)])
