"""What measurements and training ask of any network, and how any module comes to offer it."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bnmlp.machine.modes import autocast_devices


class Module(Protocol):
    """What is used of any :class:`torch.nn.Module`, see there.

    Attributes:
        training: Whether a call moves running averages.
    """

    training: bool

    def modules(self) -> Iterator[nn.Module]:
        """The module and all inside it."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The same with their names."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters, inner modules included."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same with their names."""

    def buffers(self) -> Iterator[Tensor]:
        """All buffers, inner modules included."""

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The same with their names."""

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, detached."""

    def train(self, mode: bool = True) -> Any:
        """Set the mode of the module and all inside it."""

    def eval(self) -> Any:
        """Leave training mode."""


class Network(Module, Protocol):
    """R networks of one shape, run as one batch. Duck typing: no class inherits from this."""

    @property
    def replicas(self) -> int:
        """R."""

    def __call__(self, x: Tensor) -> Tensor:
        """Logits ``(R, n, out)`` of samples ``(n, ...)``, or of one batch each, ``(R, n, ...)``."""

    def weight_matrices(self, of: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weight matrices by name, from the input to the output, each ``(R, rows, columns)``.

        Args:
            of: Other values by the names of parameters, such as gradients, taken apart alike.
        """

    def normalized(self) -> list[str]:
        """Names of the weight matrices whose length changes nothing, since a norm follows."""

    def replica_axis(self, name: str) -> int | None:
        """The axis of a parameter or buffer that counts the networks; None if they share it."""


class Averaging(Protocol):
    """A module that keeps running averages of batches, as :class:`torch.nn.BatchNorm1d`.

    Attributes:
        training: Whether a call moves the averages.
        momentum: Weight of the newest batch.
        running_mean: Of what is normalised.
        running_var: Of what is normalised.
    """

    training: bool
    momentum: float
    running_mean: Tensor
    running_var: Tensor


class Stacked(nn.Module):
    """R copies of a module with weights of their own, as one network.

    Every parameter and buffer has the name that it has in one copy and an axis in front, which
    counts the networks. Batch normalisation keeps its averages; other randomness, such as
    dropout's, differs between networks.

    Args:
        modules: Of one shape; copied.
        sample_ndim: Axes of one sample: 1 for rows, 3 for images.

    Raises:
        ValueError: If there is no module, or shapes differ.
    """

    def __init__(self, modules: Sequence[nn.Module], sample_ndim: int = 1) -> None:
        super().__init__()
        states = [module.state_dict() for module in modules]
        if not states:
            raise ValueError("Stacked: no module given")
        shapes = [{k: v.shape for k, v in state.items()} for state in states]
        if any(other != shapes[0] for other in shapes):
            raise ValueError("Stacked: the modules differ in parameters or their shapes")
        self.replicas, self.sample_ndim = len(modules), sample_ndim
        self.module = copy.deepcopy(modules[0])
        for owner in self.module.modules():
            held: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
            for kind in held:
                for name, value in kind.items():
                    if value is not None:
                        kind[name] = _placed(value, self.replicas)
        with torch.no_grad():
            for name, value in self._state().items():
                for r, module in enumerate(modules):
                    value[r].copy_(_named(module)[name])

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(R, n, out)`` of samples ``(n, *s)`` or ``(R, n, *s)``."""
        own = x.ndim == self.sample_ndim + 2
        if not own and x.ndim != self.sample_ndim + 1:
            raise ValueError(
                f"expected samples of {self.sample_ndim} axes, one batch for all or one for each "
                f"of {self.replicas} networks, got {tuple(x.shape)}"
            )
        if own and len(x) not in (1, self.replicas):
            raise ValueError(f"{len(x)} batches for {self.replicas} networks: {tuple(x.shape)}")
        x = x.expand(self.replicas, *x.shape[1:]) if own else x
        if x.device.type == "cpu" and self._goes_one_by_one():
            # In one batch they would be grouped convolutions, which take twice as long there.
            parts = {name: value.unbind() for name, value in self._state().items()}
            states = [{name: p[r] for name, p in parts.items()} for r in range(self.replicas)]
            inputs = x if own else [x] * self.replicas
            return torch.stack(list(map(self._one, states, inputs)))
        each = vmap(self._one, in_dims=(0, 0 if own else None), randomness="different")
        return each(self._state(), x)

    def _goes_one_by_one(self) -> bool:
        """Whether there are convolutions, and no hook that is to see all networks at once."""
        parts = list(self.module.modules())
        watched = any(m._forward_hooks or m._forward_pre_hooks for m in parts)
        return not watched and any(isinstance(m, nn.modules.conv._ConvNd) for m in parts)

    def _one(self, state: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.module, state, (x,))

    def _state(self) -> dict[str, Tensor]:
        return _named(self.module)

    def weight_matrices(self, of: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See :class:`Network`. Convolutions are one row for each channel that comes out."""
        values = dict(self.module.named_parameters()) if of is None else _inner(of)
        return {k: v.flatten(2) for k, v in values.items() if v.ndim > 2}

    def normalized(self) -> list[str]:
        """See :class:`Network`."""
        return normalized_matrices(self.module)

    def replica_axis(self, name: str) -> int:
        """See :class:`Network`."""
        return 0


class One(nn.Module):
    """Any module as a network of one replica; it is not copied.

    Args:
        module: Maps samples to logits.
        sample_ndim: Axes of one sample, for batches ``(1, n, ...)``; if omitted, all that is given
            is taken for a batch of the module.
    """

    replicas = 1

    def __init__(self, module: nn.Module, sample_ndim: int | None = None) -> None:
        super().__init__()
        self.module, self.sample_ndim = module, sample_ndim

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(1, n, out)`` of samples ``(n, *s)`` or ``(1, n, *s)``."""
        own = self.sample_ndim is not None and x.ndim == self.sample_ndim + 2
        return self.module(x[0] if own else x).unsqueeze(0)

    def weight_matrices(self, of: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See :class:`Network`. Convolutions are one row for each channel that comes out."""
        values = dict(self.module.named_parameters()) if of is None else _inner(of)
        return {k: v.flatten(1).unsqueeze(0) for k, v in values.items() if v.ndim > 1}

    def normalized(self) -> list[str]:
        """See :class:`Network`."""
        return normalized_matrices(self.module)

    def replica_axis(self, name: str) -> None:
        """See :class:`Network`."""


def as_network(module: nn.Module) -> Network:
    """A network as it is, any other module as one of a single replica."""
    found: Any = module
    return found if hasattr(module, "weight_matrices") else One(module)


def stacked(modules: Sequence[nn.Module], sample_ndim: int = 1) -> Stacked:
    """R copies of a module as one network, see :class:`Stacked`."""
    return Stacked(modules, sample_ndim)


def normalized_matrices(module: nn.Module) -> list[str]:
    """Matrices that a normalisation follows in the order in which modules are registered.

    For a chain of modules these are the normalised ones. Where something is added in between, as
    a skip connection before a norm, the order tells nothing: such a module has a method
    ``normalized`` of its own, which returns the names.

    Args:
        module: Any module.

    Returns:
        Names of parameters.
    """
    said: Any = getattr(module, "normalized", None)
    if said is not None:
        return said()
    found, last = [], None
    for name, part in module.named_modules():
        if isinstance(part, NORMALIZATIONS) and last is not None:
            found.append(last)
            last = None
        elif isinstance(getattr(part, "weight", None), Tensor) and part.weight is not None:
            last = f"{name}.weight" if name else "weight"
    return found


NORMALIZATIONS = (
    nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip


def batch_of(network: Network, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check samples against labels.

    Args:
        network: R networks.
        x: Samples. Shape ``(n, ...)`` or ``(R, n, ...)``.
        y: Labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        Samples, and labels of every replica, int64, of shape ``(R, n)``.

    Raises:
        ValueError: If shape, type or device do not fit.
    """
    n = y.shape[-1] if y.ndim else 0
    if n not in x.shape[:2]:
        raise ValueError(f"{n} labels for samples of shape {tuple(x.shape)}")
    return x, class_labels(y, network.replicas, n, None, x.device)


def labels_like(output_weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Check class labels against samples and model.

    Args:
        output_weight: Shape ``(R, out, width)``.
        x: Samples. Shape ``(..., n, features)``.
        y: Labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        Labels of every replica, int64. Shape ``(R, n)``.

    Raises:
        ValueError: If shape, type, device or range do not fit.
    """
    replicas, classes = output_weight.shape[:2]
    return class_labels(y, replicas, x.shape[-2], classes, x.device)


def class_labels(
    y: Tensor, replicas: int, n: int, classes: int | None, device: torch.device
) -> Tensor:
    """Check class labels against what they are to fit.

    Args:
        y: Labels. Shape ``(n,)`` or ``(R, n)``.
        replicas: R.
        n: Number of samples.
        classes: Number of logits; labels of any are taken if omitted.
        device: Where the samples are.

    Returns:
        Labels of every replica, int64. Shape ``(R, n)``.

    Raises:
        ValueError: If shape, type, device or range do not fit.
    """
    if y.shape not in ((n,), (replicas, n)):
        raise ValueError(
            f"expected labels of shape ({n},) or ({replicas}, {n}), got {tuple(y.shape)}"
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {y.dtype}; call y.long()")
    if y.device != device:
        raise ValueError(f"labels are on {y.device}, samples on {device}; move one of them")
    if classes is not None:
        low, high = _ends(y)
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels must lie in 0..{classes - 1}, got {low}..{high}; "
                "out_features of the model is the number of classes"
            )
    return y.long().expand(replicas, n)


def _ends(y: Tensor) -> tuple[int, int]:
    """The smallest and the largest label, by one transfer where they are on a GPU."""
    ends = torch.aminmax(y)
    low, high = ends if y.device.type == "cpu" else torch.stack(ends).tolist()
    return int(low), int(high)


def layered_matrices(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices of networks that keep ``input_weight``, ``hidden_weight`` and ``output_weight``."""
    found = {"layer 1": values["input_weight"]} if "input_weight" in values else {}
    for i, weight in enumerate(values.get("hidden_weight", ()), 2):
        found[f"layer {i}"] = weight
    return found | ({"output": values["output_weight"]} if "output_weight" in values else {})


def layered_axis(name: str) -> int:
    """The axis of replicas of what such networks keep."""
    return 0 if name in ("input_weight", "output_weight", "output_bias") else 1


def averaging(network: Module) -> list[Averaging]:
    """The modules that keep running averages of batches."""
    modules: Iterator[Any] = network.modules()
    return [module for module in modules if _keeps_averages(module)]


def _keeps_averages(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), Tensor)


@contextlib.contextmanager
def averages_kept(network: Module, training: bool | None = None) -> Iterator[None]:
    """Leave modes and buffers, the tensors themselves, as they were, also after an error.

    Args:
        network: Any module.
        training: Mode inside the ``with`` statement; as it is if omitted.

    Yields:
        Nothing, once.
    """
    modes = [(module, module.training) for module in network.modules()]
    buffers = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module, _ in modes
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        if training is not None:
            network.train(training)
        yield
    finally:
        for module, mode in modes:
            if module.training != mode:
                module.training = mode
        with torch.no_grad():
            for owner, name, buffer, before in buffers:
                owner[name] = buffer  # a forward pass may have put another tensor there
                buffer.copy_(before)


@contextlib.contextmanager
def without_dropout(network: Module) -> Iterator[None]:
    """Modes of a measurement: modules that keep averages stay in theirs, all others evaluate.

    Args:
        network: Any module; its buffers and modes are put back, also after an error.

    Yields:
        Nothing, once.
    """
    with averages_kept(network):
        for module in network.modules():
            if not _keeps_averages(module):
                module.training = False
        yield


def _placed(value: Tensor, replicas: int) -> Tensor:
    """Room for R tensors like one, a parameter where that is one."""
    room = torch.empty(replicas, *value.shape, dtype=value.dtype, device=value.device)
    return nn.Parameter(room, value.requires_grad) if isinstance(value, nn.Parameter) else room


def _named(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _inner(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values by the names that the wrapped module gives them."""
    return {k.removeprefix("module."): v for k, v in values.items()}


class Logits(nn.Module):
    """One network as an ordinary module, whose averages and other buffers stay as they are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        refuse_several(model)
        self.network = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, out)`` of samples ``(n, ...)``."""
        if autocast_devices():
            raise ValueError(
                "torch.autocast would round products of the Hessian to three digits; multiply "
                "outside, or inside torch.autocast(..., enabled=False)"
            )
        logits: Any = getattr(self.network, "logits", None)
        if logits is not None:
            return logits(x)[0]
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        logits = torch.func.functional_call(self.network, buffers, (x,))
        if logits.ndim == 3 and len(logits) == 1:  # R = 1
            logits = logits[0]
        if logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(
                f"curvature is measured for logits of shape ({len(x)}, classes), got "
                f"{tuple(logits.shape)}; wrap the network in a module that returns these"
            )
        return logits


def refuse_several(model: nn.Module) -> None:
    """Refuse several networks where one is measured."""
    replicas = getattr(model, "replicas", 1)
    if replicas != 1:
        raise ValueError(
            f"curvature is measured one network at a time, got {replicas}; take one with "
            "bnmlp.networks.replicas.subset(model, [r])"
        )
