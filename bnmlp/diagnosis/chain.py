"""Whether norms, activations and maps follow each other as the theory has it, from one pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bnmlp.measurements.recalibration import call_module

MAPS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "convolution"}
VIEWS = {
    "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "clone", "constant_pad_nd", "detach",
    "expand", "permute", "reshape", "select", "slice", "squeeze", "t", "transpose", "unsqueeze",
    "view",
}  # fmt: skip
POOLS = {"mean", "amax", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d"}
Elementwise = Callable[[Tensor], Tensor]


class Stretch:
    """What is computed between one norm and the next.

    Attributes:
        steps: Elementwise functions before the first map.
        mapped: Whether a map followed.
        obstacle: The first thing that the theory does not describe, in words; None if there is
            none.
    """

    def __init__(self) -> None:
        self.steps: list[Elementwise] = []
        self.mapped = False
        self.obstacle: str | None = None

    def activation(self, x: Tensor) -> Tensor:
        """All elementwise functions in turn."""
        for step in self.steps:
            x = step(x)
        return x

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of an operation of PyTorch."""
        name = func._overloadpacket.__name__.rstrip("_")
        tensors = [value for value in args if isinstance(value, Tensor)]
        if name in MAPS:
            self.mapped = True
        elif name in VIEWS or not tensors or not tensors[0].is_floating_point():
            pass
        elif torch.Tag.pointwise not in func.tags and name != "hardswish":  # PyTorch forgot its tag
            self.meet(f"{name} pools over positions" if name in POOLS else f"there is {name}")
        elif len(tensors) > 1:
            self._see_two(name, *tensors[:2])
        elif self.mapped:
            self.meet(f"{name} stands between the map and the norm")
        elif func._schema.is_mutable:
            self.steps.append(lambda x: func(x.clone(), *args[1:], **kwargs))
        else:
            self.steps.append(lambda x: func(x, *args[1:], **kwargs))

    def _see_two(self, name: str, x: Tensor, other: Tensor) -> None:
        bias = other.ndim < 2 or other.shape[0] == 1
        if name in ("add", "sub") and bias:
            return
        if name in ("add", "sub") and x.shape == other.shape:
            return self.meet(
                "two tensors are added, a shortcut, which carries what it has past the norm: "
                "errors add up instead of multiplying"
            )
        return self.meet(f"there is {name} of two tensors")

    def meet(self, obstacle: str) -> None:
        """Keep the first obstacle."""
        self.obstacle = self.obstacle or obstacle


class _Observer:
    """Hands operations to the stretch that is open; none while a norm computes."""

    def __init__(self) -> None:
        super().__init__()
        self.stretches = [Stretch()]
        self.inside_norm = False
        self.pause = ExitStack()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not self.inside_norm:
            self.stretches[-1].see(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def enter(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        """Before a norm."""
        self.inside_norm = True
        self.pause.enter_context(unwatched(given[0] if given else None))

    def leave(self, *_: Any) -> None:
        """After it."""
        self.pause.close()
        self.inside_norm = False
        self.stretches.append(Stretch())


class _Watch(_Observer, TorchDispatchMode):
    """The same as a mode: inherited, since a method written here would import the compiler."""


@contextmanager
def watched(norms: Sequence[nn.Module]) -> Iterator[list[Stretch]]:
    """What one pass computes before, between and behind the calls of norms.

    Args:
        norms: Parts of the module that is called inside the ``with`` statement.

    Yields:
        Stretches, one more than there are calls once the pass is over.
    """
    watch = _Watch()
    handles = [norm.register_forward_pre_hook(watch.enter) for norm in norms]
    handles += [norm.register_forward_hook(watch.leave) for norm in norms]
    try:
        with watch:
            yield watch.stretches
    finally:
        watch.pause.close()
        for handle in handles:
            handle.remove()


def unwatched(x: object) -> AbstractContextManager[Any]:
    """Compute with an ordinary tensor, and let no mode see each operation, which takes longer."""
    return torch._C._DisableTorchDispatch() if type(x) is Tensor else nullcontext()


@torch.no_grad()
def stretches(module: nn.Module, norms: Sequence[nn.Module], x: Any) -> list[Stretch]:
    """What a pass computes before, between and behind the calls of norms.

    Args:
        module: In the mode that it has; averages move in training mode.
        norms: Parts of it.
        x: What it is called with.

    Returns:
        One more stretch than there are calls.
    """
    with watched(norms) as found:
        call_module(module, x)
    return found


def obstacle_between(stretch: Stretch) -> str | None:
    """Why the theory stops at a stretch that leads from norm to norm; None where it goes on."""
    if stretch.obstacle or stretch.mapped:
        return stretch.obstacle
    return "no map mixes the channels"
