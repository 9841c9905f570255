r"""The hot path: forward and backward of all layers and replicas, written out by hand.

Autograd keeps a copy of every intermediate result, allocates it anew in each step, and stacks the
gradients of a thousand layers before an optimiser reads them again. Here buffers stay between
steps, gradients live for one layer, and the weight update happens inside the backward loop, as
part of the matrix product. Derived and checked in the chapter "What it costs".
"""

import math
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bnmlp.model import BNMLP

aten = torch.ops.aten
SELU = (1.6732632423543772, 1.0507009873554805)

ACTIVATE = {
    "identity": lambda x, out: out.copy_(x),
    "tanh": lambda x, out: torch.tanh(x, out=out),
    "sin": lambda x, out: torch.sin(x, out=out),
    "relu": lambda x, out: torch.clamp_min(x, 0, out=out),
    "leaky_relu": lambda x, out: aten.leaky_relu.out(x, 0.01, out=out),
    "selu": lambda x, out: aten.elu.out(x, *SELU, out=out),
}
# Gradient of the activation's input from that of its output; all but sin need the output only.
DEACTIVATE = {
    "identity": lambda grad, x, out: grad,
    "tanh": lambda grad, x, out: aten.tanh_backward(grad, out),
    "sin": lambda grad, x, out: torch.cos(x).mul_(grad),
    "relu": lambda grad, x, out: aten.threshold_backward(grad, out, 0),
    "leaky_relu": lambda grad, x, out: aten.leaky_relu_backward(grad, out, 0.01, True),
    "selu": lambda grad, x, out: aten.elu_backward(grad, *SELU, 1.0, True, out),
}

# Called with a layer's index, its weights (R, d, m), the gradient of its linear stage (R, d, n) and
# its input (R, m, n). It may change the weights.
Visit = Callable[[int, Tensor, Tensor, Tensor], None]


def supports(model: BNMLP) -> bool:
    """Whether the model is one that :class:`Stack` computes; autograd serves for the others."""
    return model.norm == "none" or (model.norm == "batch" and model.training)


class Stack:
    """A run of layers of a model, with the buffers of one pass through them and back.

    Args:
        model: The network whose choices (normalisation, activation, gains) the layers follow.
        n: Batch size.
        first: Index of the first layer, from 0.
        count: Number of layers; all if omitted.
    """

    def __init__(self, model: BNMLP, n: int, first: int = 0, count: int | None = None) -> None:
        self.model, self.n, self.first = model, n, first
        self.count = model.depth if count is None else count
        like = {"dtype": model.input_weight.dtype, "device": model.input_weight.device}
        shape = (self.count, model.replicas, model.width, n)
        self.linear = torch.empty(shape, **like).unbind()
        self.out = torch.empty(shape, **like).unbind()
        # The stage between normalisation and activation, kept only where its gradient needs it.
        self.keeps_middle = model.order == "act_norm" or model.activation == "sin"
        self.middle = (
            torch.empty(shape, **like).unbind()
            if self.keeps_middle
            else (torch.empty(shape[1:], **like),) * self.count
        )
        self.means = torch.zeros(*shape[:-1], 1, **like)
        self.rstds = torch.ones(*shape[:-1], 1, **like)
        self.mean, self.rstd = self.means.unbind(), self.rstds.unbind()
        self.eps = model.eps / n if model.unit_norm else model.eps
        self.scale = 1 / math.sqrt(n) if model.unit_norm else 1.0
        self.constants: dict[float, Tensor] = {}
        if model.affine:  # gradients of the last backward pass, (count, R, d)
            self.norm_weight_grad = torch.zeros(shape[:-1], **like)
            self.norm_bias_grad = torch.zeros(shape[:-1], **like)

    def forward(self, weights: Sequence[Tensor], h: Tensor) -> Tensor:
        """Run the layers and keep what the way back needs.

        Args:
            weights: One matrix for each layer and replica. Each of shape ``(R, d, m)``.
            h: Representation that enters. Shape ``(R, m, n)``.

        Returns:
            Representation that leaves, a view of a buffer. Shape ``(R, d, n)``.
        """
        model, activate = self.model, ACTIVATE[self.model.activation]
        for i, weight in enumerate(weights):
            layer = self.first + i
            z = torch.bmm(weight, h, out=self.linear[i])
            if model.layer_bias is not None:
                z += model.layer_bias[layer].unsqueeze(-1)
            gain = model.gains[layer]
            if model.order == "act_norm":
                if gain != 1:
                    z *= gain
                self._normalize(i, activate(z, self.middle[i]), 1.0, self.out[i])
            elif model.activation == "identity":
                self._normalize(i, z, gain, self.out[i])
            else:
                activate(self._normalize(i, z, gain, self.middle[i]), self.out[i])
            h = self.out[i]
        return h

    def backward(
        self, weights: Sequence[Tensor], x: Tensor, grad: Tensor, visit: Visit
    ) -> Tensor | None:
        """Take a gradient back through the layers of the last :meth:`forward`.

        Args:
            weights: As given to :meth:`forward`.
            x: As ``h`` given to :meth:`forward`.
            grad: Gradient of the representation that left. Shape ``(R, d, n)``.
            visit: Called for each layer, last first.

        Returns:
            Gradient of the representation that entered, None if that is the network's input.
            Shape ``(R, m, n)``.
        """
        model, deactivate = self.model, DEACTIVATE[self.model.activation]
        for i in reversed(range(self.count)):
            layer = self.first + i
            gain = model.gains[layer]
            if model.order == "act_norm":
                grad = self._denormalize(i, grad, self.middle[i], 1.0)
                grad = deactivate(grad, self.linear[i], self.middle[i])
                if gain != 1:
                    grad = grad * gain
            else:
                grad = deactivate(grad, self.middle[i], self.out[i])
                grad = self._denormalize(i, grad, self.linear[i], gain)
            below = torch.bmm(weights[i].mT, grad) if layer else None
            visit(layer, weights[i], grad, self.out[i - 1] if i else x)
            grad = below
        return grad

    def update_averages(self) -> None:
        """Move the model's running averages towards the statistics of the last forward pass."""
        model, layers = self.model, slice(self.first, self.first + self.count)
        if model.norm != "batch":
            return
        var = self.rstds.squeeze(-1) ** -2 - self.eps
        if model.unit_norm:
            var *= self.n
        elif model.center:
            var *= self.n / (self.n - 1)
        model.running_var[layers].lerp_(var, model.momentum)
        if model.center:
            model.running_mean[layers].lerp_(self.means.squeeze(-1), model.momentum)

    def _normalize(self, i: int, z: Tensor, gain: float, out: Tensor) -> Tensor:
        """Normalise, apply the affine part, multiply by ``gain``; ``out`` may be used."""
        model = self.model
        if model.norm == "none":
            return torch.mul(z, gain, out=out)
        scale = self.scale if model.affine else self.scale * gain
        if model.center:
            y, mean, rstd = aten.native_layer_norm(z, [self.n], self._vector(scale), None, self.eps)
            self.mean[i].copy_(mean)
            self.rstd[i].copy_(rstd)
            if self.keeps_middle or out is self.out[i]:
                y = out.copy_(y)
        else:
            torch.linalg.vector_norm(z, dim=-1, keepdim=True, out=self.rstd[i])
            self.rstd[i].square_().div_(self.n).add_(self.eps).rsqrt_()
            y = torch.mul(z, self.rstd[i] * scale, out=out)
        if model.affine:
            layer = self.first + i
            y *= gain * model.norm_weight[layer].unsqueeze(-1)
            y += gain * model.norm_bias[layer].unsqueeze(-1)
        return y

    def _denormalize(self, i: int, grad: Tensor, z: Tensor, gain: float) -> Tensor:
        """Gradient of the normalisation's input ``z`` from that of its output times ``gain``."""
        model = self.model
        if model.norm == "none":
            return grad * gain if gain != 1 else grad
        scale = self.scale * gain
        if model.affine:
            layer = self.first + i
            xhat = (z - self.mean[i]).mul_(self.rstd[i] * scale)
            self.norm_weight_grad[i] = torch.linalg.vecdot(grad, xhat)
            self.norm_bias_grad[i] = grad.sum(-1).mul_(gain)
            grad = grad * model.norm_weight[layer].unsqueeze(-1)
        if model.center:
            return aten.native_layer_norm_backward(
                grad, z, [self.n], self.mean[i], self.rstd[i], self._vector(scale), None,
                [True, False, False],
            )[0]  # fmt: skip
        # d/dz of z r(z), r = (|z|^2 / n + eps)^(-1/2):  r (g - z r^2 <g, z> / n)
        rstd = self.rstd[i]
        along = torch.linalg.vecdot(grad, z).unsqueeze(-1).mul_(rstd.square()).div_(-self.n)
        return torch.addcmul(grad, z, along).mul_(rstd * scale)

    def _vector(self, value: float) -> Tensor | None:
        if value == 1:
            return None
        if value not in self.constants:
            self.constants[value] = torch.full(
                (self.n,), value, dtype=self.means.dtype, device=self.means.device
            )
        return self.constants[value]


_STACKS: "weakref.WeakKeyDictionary[BNMLP, Stack]" = weakref.WeakKeyDictionary()


def stack_of(model: BNMLP, n: int) -> Stack:
    """The model's buffers for batches of ``n``, kept from call to call."""
    stack = _STACKS.get(model)
    weight = model.input_weight
    if stack is None or (stack.n, stack.means.dtype, stack.means.device) != (
        n,
        weight.dtype,
        weight.device,
    ):
        stack = _STACKS[model] = Stack(model, n)
    return stack


def labels_like(logits: Tensor, y: Tensor) -> Tensor:
    """Check class labels against logits.

    Args:
        logits: Shape ``(R, n, out)``.
        y: Labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        Labels of every replica, int64. Shape ``(R, n)``.

    Raises:
        ValueError: If shape, type, device or range do not fit.
    """
    replicas, n, classes = logits.shape
    if y.shape not in ((n,), (replicas, n)):
        raise ValueError(
            f"expected labels of shape ({n},) or ({replicas}, {n}), got {tuple(y.shape)}"
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {y.dtype}; call y.long()")
    if y.device != logits.device:
        raise ValueError(f"labels are on {y.device}, logits on {logits.device}; move one of them")
    low, high = torch.stack(torch.aminmax(y)).tolist()
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must lie in 0..{classes - 1}, got {low}..{high}; "
            "out_features of the model is the number of classes"
        )
    return y.long().expand(replicas, n)


def cross_entropy(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of each replica, and its gradient.

    Args:
        logits: Shape ``(R, n, out)``.
        y: Labels. Shape ``(R, n)``.

    Returns:
        Losses of shape ``(R,)``, gradient of shape ``(R, n, out)``.
    """
    n = y.shape[-1]
    log_p = torch.log_softmax(logits, -1)
    index = y.unsqueeze(-1)
    losses = -log_p.gather(-1, index).mean((1, 2))
    grad = log_p.exp_().div_(n)
    return losses, grad.scatter_add_(-1, index, torch.full_like(grad[..., :1], -1 / n))
