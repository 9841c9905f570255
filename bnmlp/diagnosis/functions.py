"""Sums and other functions between modules, seen as PyTorch calls them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

if TYPE_CHECKING:
    from bnmlp.diagnosis.recorder import Recorder

SUMS = frozenset(
    {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
)
ACTIVATING = frozenset(
    {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.leaky_relu,
     torch.tanh, Tensor.tanh, Tensor.tanh_, F.tanh, torch.sigmoid, Tensor.sigmoid, F.sigmoid,
     torch.sin, Tensor.sin, F.gelu, F.silu, F.elu, F.selu, torch.selu, F.softplus, F.mish}
)  # fmt: skip
RECTIFYING = frozenset(
    {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6}
)
# Views and bookkeeping compute nothing.
SILENT = frozenset(
    {"detach", "clone", "contiguous", "view", "reshape", "flatten", "unflatten", "transpose",
     "permute", "movedim", "to", "float", "double", "half", "type", "expand", "squeeze",
     "unsqueeze", "__getitem__", "chunk", "split", "unbind", "t", "narrow", "register_hook",
     "requires_grad_", "data", "grad", "T", "mT", "swapaxes", "cpu", "cuda", "copy_", "cat",
     "zeros_like", "ones_like", "empty_like", "zero_", "fill_", "view_as", "select"}
)  # fmt: skip


def undisturbed() -> AbstractContextManager[None]:
    """Compute beside the network: what is called inside is not recorded."""
    return torch._C.DisableTorchFunction()


class Functions(TorchFunctionMode):
    """Records sums and activations, and at level ``"functions"`` every function.

    Args:
        recorder: Keeps the rows.
    """

    def __init__(self, recorder: "Recorder") -> None:
        super().__init__()
        self.recorder = recorder
        self.all = recorder.level == "functions"

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, with a row for it where one is wanted."""
        if func in SUMS and _is_sum(args) and not self.recorder.hidden(args[0]):
            return self._sum(func, args, kwargs or {})
        wanted = self.all or func in ACTIVATING
        direct = wanted and self.recorder.follows(args)
        result = func(*args, **(kwargs or {}))
        if wanted and isinstance(result, Tensor) and result.is_floating_point():
            self._function(func, result, direct)
        return result

    def _sum(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        recorder = self.recorder
        stream, branch = sorted(args[:2], key=_age)
        sizes = recorder.norm_of(branch), recorder.norm_of(stream)  # before one is overwritten
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            row = recorder.function_row("add")
            row.ratio = sizes
            recorder.note(row, result)
        return result

    def _function(self, func: Callable[..., Any], result: Tensor, direct: bool) -> None:
        name = str(getattr(func, "__name__", "") or resolve_name(func) or "function")
        if name in SILENT or name == "__get__" or not result.numel():
            return
        if self.recorder.hidden(result):
            return
        row = self.recorder.function_row(name.strip("_"))
        row.direct = direct
        self.recorder.note(row, result, rectifier=func in RECTIFYING)


def _is_sum(args: tuple[Any, ...]) -> bool:
    """Whether two values of the network are added, not a bias or a position."""
    if len(args) < 2 or not all(isinstance(a, Tensor) for a in args[:2]):
        return False
    a, b = args[:2]
    return (
        a.shape == b.shape
        and a.ndim > 1
        and a.is_floating_point()
        and b.is_floating_point()
        and not isinstance(a, nn.Parameter)
        and not isinstance(b, nn.Parameter)
    )


def _age(value: Tensor) -> tuple[bool, int]:
    """Sorts a stream before its branch, which is computed later; a sum continues a stream."""
    made = value.grad_fn
    if made is None:
        return False, -1
    is_sum = type(made).__name__.startswith("AddBackward")
    return not is_sum, made._sequence_nr()  # numbers operations in the order of execution
