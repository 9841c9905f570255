"""What a layer does between its matrix products, as C that passes over memory once each way.

PyTorch's operators read and write all numbers of a layer once for each of them: a normalisation,
a gain, an activation. ``layer.c`` does it row by row while the row is in the first cache. Where no
compiler is found, ``bnmlp.networks.engine`` computes the same with PyTorch.
"""

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnmlp.machine.compiled import compiled

if TYPE_CHECKING:
    from bnmlp.networks.engine import Stack

MACROS: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.float64: ("DOUBLE",)}
KINDS = ("identity", "tanh", "sin", "relu", "leaky_relu", "selu")  # as enumerated in layer.c
FIXED, SCALE, CENTER = range(3)  # normalisations, likewise
POINTERS = (
    "linear", "middle", "out", "mean", "rstd", "bias", "weight", "shift", "bias_grad",
    "weight_grad", "shift_grad", "gains", "activations",
)  # fmt: skip


class Pointers(ctypes.Structure):
    """The structure ``stack`` of ``layer.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_long) for name in ("replicas", "width", "n")),
        *((name, ctypes.c_int) for name in ("norm", "act_norm")),
        *((name, ctypes.c_double) for name in ("eps", "scale")),
    )


def library(x: Tensor) -> ctypes.CDLL | None:
    """The compiled passes for batches like ``x``, None where there are none.

    Args:
        x: A batch, for its type and device.

    Returns:
        The library, for float32 and float64 on a CPU.
    """
    if x.device.type != "cpu" or x.dtype not in MACROS:
        return None
    return compiled(Path(__file__).with_name("layer.c"), *MACROS[x.dtype])


class Fused:
    """The passes of a stack in C.

    Args:
        stack: Whose buffers they read and write.
        functions: What :func:`library` gave.
    """

    def __init__(self, stack: "Stack", functions: ctypes.CDLL) -> None:
        recipe = stack.recipe
        self._forward, self._backward = functions.forward, functions.backward
        self._forward.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
        self._backward.argtypes = [*self._forward.argtypes, ctypes.c_void_p]
        self._forward.restype = self._backward.restype = None
        each = len(recipe.layer_gains[0]) == 1
        rows = [row * recipe.replicas if each else row for row in recipe.layer_gains]
        self._gains = torch.tensor(rows, dtype=torch.float64, device="cpu")
        names = recipe.activation
        names = (names,) * recipe.replicas if isinstance(names, str) else names
        kinds = [KINDS.index(name) for name in names]
        self._kinds = torch.tensor(kinds, dtype=torch.int32, device="cpu")
        self._at = Pointers(
            replicas=recipe.replicas, width=recipe.width, n=stack.n, act_norm=stack.act_norm,
            norm=FIXED if stack.fixed else CENTER if recipe.center else SCALE,
            eps=stack.eps, scale=stack.scale,
        )  # fmt: skip
        self._point(
            linear=stack.linear[0], middle=stack.middle[0] if stack.act_norm else None,
            out=stack.out[0], mean=stack.means, rstd=stack.rstds, gains=self._gains,
            activations=self._kinds, bias_grad=stack.bias_grad,
            weight_grad=stack.norm_weight_grad, shift_grad=stack.norm_bias_grad,
        )  # fmt: skip
        self._address = ctypes.addressof(self._at)

    def _point(self, **tensors: Tensor | None) -> None:
        for name, tensor in tensors.items():
            setattr(self._at, name, None if tensor is None else tensor.data_ptr())

    def prepare(self, bias: Tensor | None, weight: Tensor | None, shift: Tensor | None) -> None:
        """Take the parameters of the coming passes.

        Args:
            bias: Of the linear stages. Shape ``(depth, R, width)``, as the others.
            weight: Of the affine parts.
            shift: Of the affine parts.
        """
        named = {"bias": bias, "weight": weight, "shift": shift}
        self._held = {k: None if t is None else t.contiguous() for k, t in named.items()}
        self._point(**self._held)

    def forward(self, slot: int, layer: int) -> None:
        """From a layer's linear stage to its output.

        Args:
            slot: Where in the buffers.
            layer: Which of the network.
        """
        self._forward(self._address, slot, layer)

    def backward(self, slot: int, layer: int, grad: Tensor) -> Tensor:
        """From the gradient of a layer's output to that of its linear stage, in place.

        Args:
            slot: Where in the buffers.
            layer: Which of the network.
            grad: Is overwritten. Shape ``(R, width, n)``.

        Returns:
            The same tensor, or a copy if its numbers did not lie next to each other.
        """
        grad = grad.contiguous()
        self._backward(self._address, slot, layer, grad.data_ptr())
        return grad


def passes(stack: "Stack", x: Tensor) -> Fused | None:
    """The compiled passes of a stack, None where PyTorch has to do."""
    functions = None if stack.recipe.norm == "layer" else library(x)
    return None if functions is None else Fused(stack, functions)
