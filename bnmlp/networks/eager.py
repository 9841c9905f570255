"""What a layer does between its matrix products, operator by operator of PyTorch.

On GPUs, in half precision, and where no compiler is found; ``bnmlp.networks.fused`` computes the
same elsewhere.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnmlp.layers.activations import activation_parts
from bnmlp.machine.memory import fresh

if TYPE_CHECKING:
    from bnmlp.networks.engine import Stack

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


class Eager:
    """The passes of a stack by PyTorch's operators.

    Args:
        stack: Whose buffers they read and write.
        x: A batch, for its type and device.
    """

    def __init__(self, stack: "Stack", x: Tensor) -> None:
        # The stack's parts and not the stack, which would be its own owner and outlive its model.
        self.recipe, self.n, self.gains = stack.recipe, stack.n, stack.gains
        self.act_norm, self.fixed, self.eps = stack.act_norm, stack.fixed, stack.eps
        self.linear, self.out, self.middle = stack.linear, stack.out, stack.middle
        self.mean, self.rstd, self.scale = stack.mean, stack.rstd, stack.scale
        self.bias_grad = stack.bias_grad
        self.affine_grads = (stack.norm_weight_grad, stack.norm_bias_grad)
        self.parts = activation_parts(stack.recipe.activation)
        names = {name for _, name in self.parts}
        self.sine = "sin" in names and not stack.act_norm  # whose slope needs its input
        shape = (len(stack.out), *stack.out[0].shape)
        self.inputs = fresh(shape, x.dtype, x.device).unbind() if self.sine else stack.middle
        self.linear_only = names == {"identity"}
        self.tanh_only = names == {"tanh"} and tanh_by_sigmoid(x)
        self.constants: dict[float, Tensor] = {}

    def prepare(self, bias: Tensor | None, weight: Tensor | None, shift: Tensor | None) -> None:
        """Take the parameters of the coming passes.

        Args:
            bias: Of the linear stages. Shape ``(depth, R, width)``, as the others.
            weight: Of the affine parts.
            shift: Of the affine parts.
        """
        self.bias = None if bias is None else bias.unsqueeze(-1)
        self.affine = None
        if weight is not None and shift is not None:
            self.affine = weight.unsqueeze(-1), shift.unsqueeze(-1)

    def forward(self, slot: int, layer: int) -> None:
        """From a layer's linear stage, to which the bias is added, to its output.

        Args:
            slot: Where in the buffers.
            layer: Which of the network.
        """
        z, out, gain = self.linear[slot], self.out[slot], self.gains[layer]
        if self.bias is not None:
            z += self.bias[layer]
        if self.act_norm:
            if not is_one(gain):
                z *= gain
            y = activate(self.parts, z, self.middle[slot])
            self._normalize(slot, layer, y, 1.0, out)
        elif self.linear_only:
            self._normalize(slot, layer, z, gain, out)
        elif self.tanh_only:  # the factor of 2 costs nothing where it joins the gain
            _tanh_of_half(self._normalize(slot, layer, z, 2 * gain, self.inputs[slot]), out)
        else:
            activate(self.parts, self._normalize(slot, layer, z, gain, self.inputs[slot]), out)

    def backward(self, slot: int, layer: int, grad: Tensor) -> Tensor:
        """From the gradient of a layer's output to that of its linear stage.

        Args:
            slot: Where in the buffers.
            layer: Which of the network.
            grad: May be overwritten. Shape ``(R, width, n)``.

        Returns:
            The gradient. Shape ``(R, width, n)``.
        """
        gain = self.gains[layer]
        if self.act_norm:
            grad = self._denormalize(slot, layer, grad, self.middle[slot], 1.0)
            grad = self._deactivate(grad, self.linear[slot], self.middle[slot])
            grad = grad if is_one(gain) else grad * gain
        else:
            grad = self._deactivate(grad, self.inputs[slot], self.out[slot])
            grad = self._denormalize(slot, layer, grad, self.linear[slot], gain)
        if self.bias_grad is not None:
            torch.sum(grad, -1, out=self.bias_grad[layer])
        return grad

    def _deactivate(self, grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """Gradient of the activation's input; that of its output may be overwritten."""
        if len(self.parts) == 1:
            return DEACTIVATE[self.parts[0][1]](grad, x, out)
        for part, name in self.parts:
            if name != "identity":
                grad[part] = DEACTIVATE[name](grad[part], x[part], out[part])
        return grad

    def _normalize(
        self, slot: int, layer: int, z: Tensor, gain: float | Tensor, out: Tensor
    ) -> Tensor:
        """Normalise, apply the affine part, multiply by ``gain``; ``out`` may be used."""
        if isinstance(gain, Tensor):
            return self._normalize(slot, layer, z, 1.0, out).mul_(gain)
        if self.recipe.norm == "none":
            return torch.mul(z, gain, out=out)
        scale = self.scale * gain if self.affine is None else self.scale
        if self.recipe.norm == "batch" and self.recipe.center and not self.fixed:
            y, mean, rstd = aten.native_layer_norm(z, [self.n], self._vector(scale), None, self.eps)
            self.mean[slot].copy_(mean)
            self.rstd[slot].copy_(rstd)
            if self.sine or out is self.out[slot]:
                y = out.copy_(y)
        else:
            self._measure(slot, z)
            y = torch.sub(z, self.mean[slot], out=out).mul_(self.rstd[slot] * scale)
        if self.affine is not None:
            weight, shift = self.affine
            y *= gain * weight[layer]
            y += gain * shift[layer]
        return y

    def _measure(self, slot: int, z: Tensor) -> None:
        """Mean, if it is subtracted, and one over the root of the mean square about it."""
        if self.fixed:
            return
        axis = -2 if self.recipe.norm == "layer" else -1
        if self.recipe.center:
            var, self.mean[slot][:] = torch.var_mean(z, axis, correction=0, keepdim=True)
        else:
            var = z.square().mean(axis, keepdim=True)
        torch.rsqrt(var + self.eps, out=self.rstd[slot])

    def _denormalize(
        self, slot: int, layer: int, grad: Tensor, z: Tensor, gain: float | Tensor
    ) -> Tensor:
        """Gradient of the normalisation's input ``z`` from that of its output times ``gain``."""
        if isinstance(gain, Tensor):
            return self._denormalize(slot, layer, grad * gain, z, 1.0)
        if self.recipe.norm == "none":
            return grad * gain if gain != 1 else grad
        scale, mean, rstd = self.scale * gain, self.mean[slot], self.rstd[slot]
        if self.affine is not None:
            along = torch.linalg.vecdot(grad, (z - mean).mul_(rstd * scale))
            for kept, value in zip(
                self.affine_grads, (along, grad.sum(-1).mul_(gain)), strict=True
            ):
                if kept is not None:
                    kept[layer] = value
            grad = grad * self.affine[0][layer]
        if self.fixed:
            return grad * (rstd * scale)
        if self.recipe.norm == "batch" and self.recipe.center:
            return aten.native_layer_norm_backward(
                grad, z, [self.n], mean, rstd, self._vector(scale), None, [True, False, False]
            )[0]  # fmt: skip
        # d/dz of (z - m) r, r = (mean of (z - m)^2 + eps)^(-1/2):  r (g - mean g - x mean(g x))
        axis = -2 if self.recipe.norm == "layer" else -1
        xhat = (z - mean).mul_(rstd)
        along = (grad * xhat).mean(axis, keepdim=True)
        if self.recipe.center:
            grad = grad - grad.mean(axis, keepdim=True)
        return torch.addcmul(grad, xhat, along, value=-1).mul_(rstd * scale)

    def _vector(self, value: float) -> Tensor | None:
        if value == 1:
            return None
        if value not in self.constants:
            self.constants[value] = self.mean[0].new_full((self.n,), value)
        return self.constants[value]
