r"""The hot path: forward and backward of all layers and replicas, written out by hand.

Autograd keeps a copy of every intermediate result, allocates it anew in each step, and stacks the
gradients of a thousand layers before an optimiser reads them again. Here buffers stay between
steps, gradients live for one layer, and the weight update happens inside the backward loop, as
part of the matrix product. Derived and checked in the chapter "What a thousand layers
cost".
"""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from bnmlp.layers.activations import activation_parts
from bnmlp.machine.memory import fresh
from bnmlp.networks.mlp import BNMLP

aten = torch.ops.aten
SELU = (1.6732632423543772, 1.0507009873554805)


def tanh_by_sigmoid(x: Tensor) -> bool:
    """Whether tanh is computed as 2 sigmoid(2x) - 1, several times faster.

    The absolute error of that form is below 2e-7, that is one or two units of float32 at 1.

    Args:
        x: What tanh is to be taken of.

    Returns:
        True for float32 on a CPU.
    """
    return x.dtype == torch.float32 and x.device.type == "cpu"


def _tanh(x: Tensor, out: Tensor) -> Tensor:
    if not tanh_by_sigmoid(x):
        return torch.tanh(x, out=out)
    return _tanh_of_half(torch.mul(x, 2, out=out), out)


def _tanh_of_half(x: Tensor, out: Tensor) -> Tensor:
    torch.sigmoid(x, out=out)
    return torch.add(MINUS_ONE, out, alpha=2, out=out)


MINUS_ONE = torch.tensor(-1.0, dtype=torch.float32, device="cpu")
ACTIVATE = {
    "identity": lambda x, out: out.copy_(x),
    "tanh": _tanh,
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


def activate(parts: list[tuple[slice, str]], x: Tensor, out: Tensor) -> Tensor:
    """Activations of runs of replicas, into ``out``, which may be ``x``."""
    if len(parts) == 1:
        return ACTIVATE[parts[0][1]](x, out)
    for part, name in parts:
        ACTIVATE[name](x[part], out[part])
    return out


def is_one(gain: float | Tensor) -> bool:
    """Whether a gain changes nothing."""
    return not isinstance(gain, Tensor) and gain == 1


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
        x: A batch, for its size, type and device. Shape ``(..., n, features)``.
        capacity: Number of layers the buffers hold; the model's depth if omitted.
    """

    def __init__(self, model: BNMLP, x: Tensor, capacity: int | None = None) -> None:
        # Weak, since a stack is kept for its model: a strong reference would keep both for ever.
        self.model, self.made_for = weakref.proxy(model), key_of(model, x)
        self.recipe, self.n, self.first = model.recipe, x.shape[-2], 0
        n, recipe, capacity = self.n, self.recipe, capacity or model.depth
        shape = (capacity, recipe.replicas, recipe.width, n)
        self.gains = model.gains_like(x)
        self.parts = activation_parts(recipe.activation)
        names = {name for _, name in self.parts}
        self.linear_only = names == {"identity"}
        self.tanh_only = names == {"tanh"} and tanh_by_sigmoid(x)
        self.linear = fresh(shape, x.dtype, x.device).unbind()
        self.out = fresh(shape, x.dtype, x.device).unbind()
        # The stage between normalisation and activation, kept only where its gradient needs it.
        self.keeps_middle = recipe.order == "act_norm" or "sin" in names
        self.middle = (
            fresh(shape, x.dtype, x.device).unbind()
            if self.keeps_middle
            else (x.new_empty(shape[1:]),) * capacity
        )
        self.nbytes = (2 + self.keeps_middle) * math.prod(shape) * x.dtype.itemsize
        self.means, self.rstds = x.new_zeros(*shape[:-1], 1), x.new_ones(*shape[:-1], 1)
        self.mean, self.rstd = self.means.unbind(), self.rstds.unbind()
        self.eps = recipe.eps / n if recipe.unit_norm else recipe.eps
        self.scale = 1 / math.sqrt(n) if recipe.unit_norm else 1.0
        self.constants: dict[float, Tensor] = {}
        if recipe.affine:  # gradients of the last backward pass, (layers, R, d)
            self.norm_weight_grad, self.norm_bias_grad = x.new_zeros(2, *shape[:-1]).unbind()

    def forward(self, weights: Sequence[Tensor], h: Tensor, first: int = 0) -> Tensor:
        """Run some layers and keep what the way back needs.

        Args:
            weights: One matrix for each layer and replica. Each of shape ``(R, d, m)``.
            h: Representation that enters. Shape ``(R, m, n)``.
            first: Index in the model of the first of these layers.

        Returns:
            Representation that leaves, a view of a buffer. Shape ``(R, d, n)``.
        """
        act_norm, bias = self.recipe.order == "act_norm", self.model.layer_bias
        self.first = first
        for i, weight in enumerate(weights):
            gain = self.gains[first + i]
            z = torch.bmm(weight, h, out=self.linear[i])
            if bias is not None:
                z += bias[first + i].unsqueeze(-1)
            if act_norm:
                if not is_one(gain):
                    z *= gain
                y = activate(self.parts, z, self.middle[i])
                self._normalize(i, y, 1.0, self.out[i])
            elif self.linear_only:
                self._normalize(i, z, gain, self.out[i])
            elif self.tanh_only:  # the factor of 2 costs nothing where it joins the gain
                y = self._normalize(i, z, 2 * gain, self.middle[i])
                _tanh_of_half(y, self.out[i])
            else:
                y = self._normalize(i, z, gain, self.middle[i])
                activate(self.parts, y, self.out[i])
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
        act_norm = self.recipe.order == "act_norm"
        for i in reversed(range(len(weights))):
            layer = self.first + i
            gain = self.gains[layer]
            if act_norm:
                grad = self._denormalize(i, grad, self.middle[i], 1.0)
                grad = self._deactivate(grad, self.linear[i], self.middle[i])
                if not is_one(gain):
                    grad = grad * gain
            else:
                grad = self._deactivate(grad, self.middle[i], self.out[i])
                grad = self._denormalize(i, grad, self.linear[i], gain)
            below = torch.bmm(weights[i].mT, grad) if layer else None
            visit(layer, weights[i], grad, self.out[i - 1] if i else x)
            if below is None:
                return None
            grad = below
        return grad

    def update_averages(self) -> None:
        """Move the running averages of all layers towards the last forward pass."""
        model, recipe = self.model, self.recipe
        if recipe.norm != "batch":
            return
        var = (self.rstds.squeeze(-1) ** -2 - self.eps).clamp_min_(0)  # rounding may take it below
        if recipe.unit_norm:
            var *= self.n
        elif recipe.center:
            var *= self.n / (self.n - 1)
        model.running_var.lerp_(var, model.momentum)
        if recipe.center:
            model.running_mean.lerp_(self.means.squeeze(-1), model.momentum)

    def _deactivate(self, grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """Gradient of the activation's input; that of its output may be overwritten."""
        if len(self.parts) == 1:
            return DEACTIVATE[self.parts[0][1]](grad, x, out)
        for part, name in self.parts:
            if name != "identity":
                grad[part] = DEACTIVATE[name](grad[part], x[part], out[part])
        return grad

    def _normalize(self, i: int, z: Tensor, gain: float | Tensor, out: Tensor) -> Tensor:
        """Normalise, apply the affine part, multiply by ``gain``; ``out`` may be used."""
        recipe = self.recipe
        if isinstance(gain, Tensor):
            return self._normalize(i, z, 1.0, out).mul_(gain)
        if recipe.norm == "none":
            return torch.mul(z, gain, out=out)
        scale = self.scale if recipe.affine else self.scale * gain
        if recipe.center:
            y, mean, rstd = aten.native_layer_norm(z, [self.n], self._vector(scale), None, self.eps)
            self.mean[i].copy_(mean)
            self.rstd[i].copy_(rstd)
            if self.keeps_middle or out is self.out[i]:
                y = out.copy_(y)
        else:
            torch.linalg.vector_norm(z, dim=-1, keepdim=True, out=self.rstd[i])
            self.rstd[i].square_().div_(self.n).add_(self.eps).rsqrt_()
            y = torch.mul(z, self.rstd[i] * scale, out=out)
        if recipe.affine:
            layer = self.first + i
            y *= gain * self.model.norm_weight[layer].unsqueeze(-1)
            y += gain * self.model.norm_bias[layer].unsqueeze(-1)
        return y

    def _denormalize(self, i: int, grad: Tensor, z: Tensor, gain: float | Tensor) -> Tensor:
        """Gradient of the normalisation's input ``z`` from that of its output times ``gain``."""
        recipe = self.recipe
        if isinstance(gain, Tensor):
            return self._denormalize(i, grad * gain, z, 1.0)
        if recipe.norm == "none":
            return grad * gain if gain != 1 else grad
        scale = self.scale * gain
        if recipe.affine:
            layer = self.first + i
            xhat = (z - self.mean[i]).mul_(self.rstd[i] * scale)
            self.norm_weight_grad[i] = torch.linalg.vecdot(grad, xhat)
            self.norm_bias_grad[i] = grad.sum(-1).mul_(gain)
            grad = grad * self.model.norm_weight[layer].unsqueeze(-1)
        if recipe.center:
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
            self.constants[value] = self.means.new_full((self.n,), value)
        return self.constants[value]


_STACKS: "weakref.WeakKeyDictionary[BNMLP, Stack]" = weakref.WeakKeyDictionary()


def key_of(model: BNMLP, x: Tensor) -> tuple[object, ...]:
    """What buffers depend on: equal for batches and networks that can share them.

    Args:
        model: R networks.
        x: A batch. Shape ``(..., n, features)``.

    Returns:
        Size, type and device of the batch, and the recipe.
    """
    return x.shape[-2], x.dtype, x.device, model.recipe


def stack_of(model: BNMLP, x: Tensor) -> Stack:
    """Buffers for all layers of the model and batches like ``x``, kept from call to call."""
    stack = _STACKS.get(model)
    if stack is None or stack.made_for != key_of(model, x):
        _STACKS.pop(model, None)  # free the old buffers before taking new ones
        stack = _STACKS[model] = Stack(model, x)
    return stack


def backward_in_segments(
    model: BNMLP,
    x: Tensor,
    y: Tensor,
    weights_of: Callable[[range], Sequence[Tensor]],
    visit: Visit,
    progress: Callable[[range], Iterable[int]] = iter,
    spare: int = 0,
) -> None:
    """Visit the gradients of every layer, last first, with memory for the root of the depth.

    The way in keeps the representation at the start of each segment only; the way back runs each
    segment again, except for the last ones, whose buffers fit into the spare memory. Between
    segments the gradient is scaled to a largest entry of one, so no depth over- or underflows.

    Args:
        model: The network whose choices the layers follow.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Labels. Shape ``(R, n)``.
        weights_of: Gives the weights of consecutive layers, each of shape ``(R, d, m)``; index
            ``depth`` is the output matrix.
        visit: Called for each layer and, first of all, for the output matrix with (layer,
            gradient of the linear stage, input of the layer, logarithm of the factor by which the
            gradient has been divided). Shapes ``(R, d, n)``, ``(R, m, n)`` and ``(R,)``.
        progress: Wraps the loop over segments, as tqdm does.
        spare: Bytes for buffers that save the second way in.
    """
    depth = model.depth
    length = max(1, math.isqrt(depth))
    starts = range(0, depth, length)
    stack = Stack(model, x, min(length, depth))
    kept = len(starts) - 1 - min(spare // stack.nbytes, len(starts) - 1)
    h = x.mT.expand(model.replicas, -1, -1)  # (R, in, n)
    passed: list[tuple[Stack, range, Sequence[Tensor] | None, Tensor]] = []
    for first in progress(starts):
        layers = range(first, min(first + length, depth))
        weights = weights_of(layers)
        if first < starts[kept]:
            passed.append((stack, layers, None, h))
            h = stack.forward(weights, h, first).clone()
        else:
            own = Stack(model, x, len(layers)) if first != starts[kept] else stack
            passed.append((own, layers, weights, h))
            h = own.forward(weights, h, first)
        del weights
    (output_weight,) = weights_of(range(depth, depth + 1))
    _, grad = cross_entropy(model.head(h, output_weight), y)
    log_scale = torch.zeros(model.replicas, dtype=grad.dtype, device=grad.device)
    visit(depth, grad.mT, h, log_scale)
    grad = torch.bmm(output_weight.mT, grad.mT)
    for _ in progress(starts[::-1]):
        stack, layers, held, h = passed.pop()
        peak = grad.abs().amax((1, 2)).clamp_min(torch.finfo(grad.dtype).tiny)
        log_scale = log_scale + peak.log()
        grad /= peak[:, None, None]
        weights = weights_of(layers) if held is None else held
        if held is None:
            stack.forward(weights, h, layers.start)
        below = stack.backward(weights, h, grad, _scaled(visit, log_scale))
        if below is not None:  # as it is at the end, behind the first layer
            grad = below


def _scaled(visit: Visit, log_scale: Tensor) -> Visit:
    """The visit of a layer whose gradients have been divided by a factor."""
    return lambda layer, weight, grad, h: visit(layer, grad, h, log_scale)


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
