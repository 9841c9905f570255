"""Cures for any module: orthogonal weights, and activations shaped by their depth."""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnmlp.checks import check_module
from bnmlp.layers.activations import gain_schedule
from bnmlp.layers.initialization import haar_frames
from bnmlp.layers.seeds import random_source
from bnmlp.machine.modes import outside_modes
from bnmlp.machine.randomness import random_state_kept
from bnmlp.measurements.recalibration import call_module, without_compiler
from bnmlp.networks.protocol import averages_kept

CONVOLUTIONS = nn.modules.conv._ConvNd  # of any dimension, transposed ones too
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
ACTIVATIONS = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.Sigmoid, nn.SiLU,
    nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink,
)  # fmt: skip


@outside_modes
@torch.no_grad()
def orthogonal_(
    module: nn.Module, gain: float = 1.0, *, seed: int = 0, exclude: Sequence[str] = ()
) -> list[str]:
    r"""Draw the weights of all linear maps and convolutions anew, uniformly among orthogonal ones.

    Every singular value of each map becomes ``gain``. A square matrix is Haar-distributed, and
    lengths and angles are kept both ways. A tall one (more outputs than inputs) has orthonormal
    columns: it keeps what it maps, not all gradients. A wide one has orthonormal rows: it keeps
    gradients on their way back, not all signals. The scale is that of
    :func:`torch.nn.init.orthogonal_`.

    A kernel is zero outside a block in its middle as large as the stride, whose patches tile the
    image, and semi-orthogonal on that block: with stride one a delta-orthogonal kernel, one matrix
    at its centre; where the stride is the size of the kernel, as in a patch embedding, all of it.
    So convolutions keep what matrices keep, up to what padding cuts off, and mix no positions
    within a resolution until they are trained. Groups have a matrix each.

    The three maps into attention of :class:`torch.nn.MultiheadAttention` and the gates of recurrent
    layers are one matrix each. Biases, norms, embeddings, weights tied to one, and weights that
    require no gradient stay as they are.

    Args:
        module: Changed in place.
        gain: Singular value of each map; :math:`\sqrt2` keeps the mean square through ReLU.
        seed: A weight depends on this and its place alone.
        exclude: Names of modules or parameters that stay as they are, such as ``["fc"]``.

    Returns:
        Names of the parameters that were drawn, in order of registration.

    Raises:
        ValueError: If there is none, ``gain`` is not positive, a name is unknown, or a weight is
            lazy, complex, without memory, or computed from others, as by ``weight_norm``. Nothing
            has changed then.

    Examples:
        >>> module = nn.Sequential(nn.Linear(5, 5), nn.Conv2d(2, 3, 3))
        >>> orthogonal_(module)
        ['0.weight', '1.weight']
        >>> w = module[0].weight
        >>> torch.allclose(w @ w.mT, torch.eye(5), atol=1e-5)
        True
        >>> module[1].weight[:, :, 0].count_nonzero().item()  # a row beside the centre
        0
    """
    check_module("orthogonal_", module)
    if not (gain > 0 and math.isfinite(gain)):
        raise ValueError(f"orthogonal_: gain must be a finite number > 0, got {gain}")
    names = [name for name, _ in module.named_modules()]
    names += [name for name, _ in module.named_parameters(remove_duplicate=False)]
    _check_known("orthogonal_", exclude, names)
    tied = {id(m.weight) for m in module.modules() if isinstance(m, EMBEDDINGS)}
    drawn: dict[str, tuple[Tensor, Tensor]] = {}
    for i, (name, part, key) in enumerate(_maps(module)):
        if _within(name, exclude) or id(getattr(part, key)) in tied:
            continue
        weight = _own_parameter(name, part, key)
        if weight.requires_grad:
            drawn[name] = weight, gain * _drawn(part, key, weight, random_source(seed, i))
    if not drawn:
        raise ValueError(
            "orthogonal_: found no weight of a linear map or convolution to draw; matrices that a "
            "module keeps in parameters of its own are not known here"
        )
    for weight, value in drawn.values():
        weight.copy_(value)
    return list(drawn)


def _maps(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, owner and key of each weight that maps vectors; a shared one once."""
    seen: set[int] = set()
    for path, part in module.named_modules():
        for key in _keys(part):
            value = getattr(part, key)
            if id(value) not in seen:
                seen.add(id(value))
                yield f"{path}.{key}" if path else key, part, key


def _keys(part: Any) -> list[str]:
    if isinstance(part, (nn.Linear, CONVOLUTIONS)):
        return ["weight"]
    if isinstance(part, nn.MultiheadAttention):
        names = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
        return [name for name in names if getattr(part, name) is not None]
    if isinstance(part, nn.RNNBase):
        return [name for name in part._flat_weights_names if name.startswith("weight")]
    return ["weight_ih", "weight_hh"] if isinstance(part, nn.RNNCellBase) else []


def _own_parameter(name: str, part: nn.Module, key: str) -> Tensor:
    weight = part._parameters.get(key)
    if weight is None:
        raise ValueError(
            f"orthogonal_: {name} is computed from other parameters (weight_norm, spectral_norm, "
            "pruning); remove that first, or exclude it"
        )
    if nn.parameter.is_lazy(weight):
        raise ValueError(f"orthogonal_: {name} has no shape yet; put one batch through the module")
    if weight.is_meta or not weight.is_floating_point():
        raise ValueError(
            f"orthogonal_: {name} is {weight.dtype} on {weight.device}; it takes real numbers in "
            "memory"
        )
    return weight


def _drawn(part: nn.Module, key: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    """A fresh weight with singular values one, of the shape and type of the one that is there."""
    if isinstance(part, CONVOLUTIONS):
        return _kernel(part, weight, generator)
    rows, columns = weight.shape
    return _frames(_blocks(part, key, weight), rows, columns, generator).to(weight)


def _blocks(part: nn.Module, key: str, weight: Tensor) -> int:
    """Maps whose matrices are stored below each other."""
    if key == "in_proj_weight":
        return 3
    if isinstance(part, nn.RNNBase | nn.RNNCellBase) and len(weight) % part.hidden_size == 0:
        return len(weight) // part.hidden_size
    return 1


def _kernel(part: nn.modules.conv._ConvNd, weight: Tensor, generator: torch.Generator) -> Tensor:
    """Zero outside a central block whose patches do not overlap."""
    rows, columns, *window = weight.shape
    block = [
        min(size, stride) if math.gcd(stride, dilation) == 1 else 1
        for size, stride, dilation in zip(window, part.stride, part.dilation, strict=True)
    ]
    inner = [
        slice((size - b + 1) // 2, (size - b + 1) // 2 + b)
        for size, b in zip(window, block, strict=True)
    ]
    frames = _frames(part.groups, rows, columns * math.prod(block), generator)
    kernel = torch.zeros_like(weight)
    kernel[:, :, *inner] = frames.view(rows, columns, *block).to(weight)
    return kernel


def _frames(blocks: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Semi-orthogonal matrices below each other, drawn on the CPU in float64."""
    normal = torch.randn(
        blocks, rows // blocks, columns, generator=generator, device="cpu", dtype=torch.float64
    )
    return haar_frames(normal).flatten(0, 1)


class Shaped(nn.Module):
    """An activation behind a gain: ``activation(gain * x)``.

    Attributes:
        activation: The module that was there before.
        gain: Factor on its input, no parameter: the state of the network stays what it was.
    """

    activation: nn.Module
    gain: float

    def __init__(self, activation: nn.Module, gain: float = 1.0) -> None:
        super().__init__()
        self.activation, self.gain = activation, gain

    def forward(self, x: Tensor) -> Tensor:
        """Activation of the scaled input, in the same shape."""
        return self.activation(x if self.gain == 1 else self.gain * x)

    def extra_repr(self) -> str:
        """The gain, for printing."""
        return f"gain={self.gain:.4g}"


@torch.no_grad()
def shape_(
    module: nn.Module,
    exponent: float,
    x: Any = None,
    *,
    gain: float = 1.0,
    exclude: Sequence[str] = (),
    kinds: tuple[type[nn.Module], ...] = (),
) -> dict[str, float]:
    r"""Give the activation of layer :math:`\ell` the gain :math:`\alpha\,\ell^{-e}` on its input.

    Deep activations then see small numbers and are nearly linear, so that with orthogonal weights
    and batch norm gradients stay bounded. Each activation module is put into a
    :class:`~bnmlp.diagnosis.cures.Shaped`; parameters and their names stay. Called again, gains
    are set anew; ``exponent=0`` with gain one takes them out.

    Behind a norm the scale of a layer's output does not matter. Without one, each gain shrinks the
    signal as well: this cure is for normalised networks.

    An activation with a kink at zero, such as ReLU, has it at any gain and does not get linear:
    :math:`\sigma(\alpha x)=\alpha\,\sigma(x)`, a factor that the next norm takes out again. It
    counts as a layer and keeps gain one, with a warning.

    Args:
        module: Changed in place, but not its weights. Activations are those that are modules: a
            function called in ``forward`` cannot be replaced.
        exponent: :math:`e`.
        x: Samples, a tuple of arguments or a dict of named ones: layers are then counted in the
            order of calls. If omitted, in the order of registration.
        gain: :math:`\alpha`.
        exclude: Names of modules that stay as they are and do not count, such as gates.
        kinds: Further types of modules that are activations, such as a sine of one's own.

    Returns:
        The gain of each activation that was shaped, by its name, from the input to the output.

    Raises:
        ValueError: If there is no activation module or all have a kink, one module is called by
            several layers, a name is unknown, or gain or exponent make no schedule. Nothing has
            changed then.

    Examples:
        >>> layers = [nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh()]
        >>> module = nn.Sequential(*layers, nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh())
        >>> shape_(module, 1.0)
        {'2': 1.0, '5': 0.5}
        >>> shape_(module, 0.0)
        {'2': 1.0, '5': 1.0}
        >>> module[5]
        Tanh()
    """
    check_module("shape_", module)
    _check_known("shape_", exclude, [name for name, _ in module.named_modules()])
    slots = _slots(module, ACTIVATIONS + kinds, exclude)
    order = _in_order_of_calls(module, slots, x) if x is not None else list(slots)
    gains = dict(zip(order, gain_schedule(len(order), gain, exponent).tolist(), strict=True))
    smooth = {name: value for name, value in gains.items() if _is_smooth(slots[name].inner)}
    _refuse_kinks(list(gains), list(smooth))
    undo = exponent == 0 and gain == 1
    for name, value in smooth.items():
        slots[name].put(None if undo else value)
    return smooth


class _Slot:
    """A place where a module holds an activation, shaped or not."""

    def __init__(self, owner: Any, key: str, held: nn.Module) -> None:
        self.owner, self.key, self.held = owner, key, held
        self.inner = held.activation if isinstance(held, Shaped) else held

    def put(self, gain: float | None) -> nn.Module:
        """Shape the activation, or put back the one that was there first."""
        placed = self.inner if gain is None else Shaped(self.inner, gain).train(self.inner.training)
        self.owner._modules[self.key] = placed
        if hasattr(self.owner, "activation_relu_or_gelu"):  # a fused kernel knows no gain
            fused = {nn.ReLU: 1, nn.GELU: 2}.get(type(placed), 0)
            self.owner.activation_relu_or_gelu = fused
        return placed

    def restore(self) -> None:
        """Put back what was there."""
        self.put(self.held.gain if isinstance(self.held, Shaped) else None)


def _slots(
    module: nn.Module, kinds: tuple[type[nn.Module], ...], exclude: Sequence[str]
) -> dict[str, _Slot]:
    found = {}
    for path, owner in module.named_modules():
        if isinstance(owner, Shaped):
            continue
        for key, part in owner._modules.items():
            name = f"{path}.{key}" if path else key
            known = part is not None and isinstance(part, (Shaped, *kinds))
            if known and not _within(name, exclude):
                found[name] = _Slot(owner, key, part)
    if not found:
        raise ValueError(
            "shape_: found no activation module; what forward calls as a function, such as "
            "torch.tanh(x), cannot be replaced: make it a module, nn.Tanh(), or name its type in "
            "kinds="
        )
    return found


def _in_order_of_calls(module: nn.Module, slots: dict[str, _Slot], x: Any) -> list[str]:
    """Names in the order in which a pass calls them, each once."""
    order: list[str] = []
    try:
        # One module may stand in several places: a wrapper in each tells them apart.
        for name, slot in slots.items():
            slot.put(1.0).register_forward_pre_hook(lambda *_, name=name: order.append(name))
        with averages_kept(module, training=False), random_state_kept(), without_compiler():
            call_module(module, x)
    finally:
        for slot in slots.values():
            slot.restore()
    repeated = sorted({name for name in order if order.count(name) > 1})
    if repeated:
        raise ValueError(
            f"shape_: {', '.join(repeated)} is called {order.count(repeated[0])} times in one "
            "pass, and each layer needs a gain of its own; give each a module of its own"
        )
    return order


def _is_smooth(activation: nn.Module) -> bool:
    """Whether it has one slope at zero, not zero: small inputs then see a linear function."""
    step = 1e-5
    x = torch.tensor([-step, 0.0, step], dtype=torch.float64)
    below, above = (copy.deepcopy(activation).cpu().double()(x).diff() / step).tolist()
    return abs(below - above) < 1e-3 * abs(below + above)


def _refuse_kinks(all_: list[str], smooth: list[str]) -> None:
    kinked = [name for name in all_ if name not in smooth]
    if not kinked:
        return
    words = (
        f"shape_: {', '.join(kinked)} has a kink at zero, as ReLU has, which no gain removes: a "
        "gain only scales its output, and a norm behind it takes the scale out again"
    )
    if not smooth:
        raise ValueError(f"{words}; use a smooth activation, such as nn.Tanh()")
    warnings.warn(f"{words}; it keeps gain one", stacklevel=3)


def _within(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _check_known(function: str, exclude: Sequence[str], names: Sequence[str]) -> None:
    if isinstance(exclude, str):
        raise ValueError(f"{function}: exclude must be a list of names, got {exclude!r}")
    unknown = [name for name in exclude if name not in names]
    if unknown:
        raise ValueError(
            f"{function}: exclude names {', '.join(map(repr, unknown))}, which the module lacks; "
            f"it has {', '.join(name for name in names if name)}"
        )
