"""One row for each call of a module: what hooks note while a network runs forward and back.

Numbers stay on the device as tensors of one entry until the pass is over, and no activation is
kept. A hook on the output tensor, not on the module, sees the gradient of the value that the module
returned, also where the next operation overwrites it (a ReLU in place, ``out += x``).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from bnmlp.diagnosis.anatomy import Anatomy
from bnmlp.diagnosis.cures import Shaped
from bnmlp.diagnosis.functions import Functions, undisturbed
from bnmlp.diagnosis.spectra import spectrum
from bnmlp.diagnosis.weights import LONG, euclidean
from bnmlp.machine.structures import first_tensor

LEVELS = ("layers", "modules", "additions", "functions")
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Threshold, nn.Hardshrink, nn.Softshrink)
SECOND_AXIS = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm, nn.GroupNorm,
)  # fmt: skip
LAST_AXIS = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
LOOKUPS = (nn.Embedding, nn.EmbeddingBag)
MANY = 1024  # samples; one running sum over more loses digits


class Row:
    """What is known of one call. Numbers are tensors until :class:`bnmlp.diagnosis.table.Table`.

    Attributes:
        recorder: That made it.
        name: Path of the module, with ``#2`` for its second call; of a function, that of the module
            that computes it, a dot and the function's name.
        kind: Class of the module, or name of the function.
        module: The module, or None for a function.
        path: The name of a function without its number.
        weights: Matrices that the call uses, or else the scale of a normalisation.
        weighted: Whether the call multiplies with a matrix of its own.
        shape: Of the output.
        dtype: Of the output.
        axis: Which axis of the output counts features.
        norm: Euclidean norm of the output.
        total: Euclidean norm of the sum of the output over samples, the first axis.
        mean: Euclidean norm of the features' sums over all samples and positions.
        ends: Smallest and largest entry; of layers, functions, and numbers of 16 bits.
        dead: Share of features that are zero for every sample and position; of rectifiers.
        direct: Whether the input is what the call before put out.
        source: Euclidean norm of the input and its number of entries; of weighted calls.
        ratio: Norms of branch and stream; of additions.
        gradient: Euclidean norm of the loss's gradient in the output.
        faults: Entries that are not finite, of output and gradient; counted when careful.
        spectrum: Participation ratio and isometry gap of the output; if asked for.
    """

    module: nn.Module | None = None
    path = ""
    weights: Sequence[nn.Parameter] = ()
    weighted = direct = False
    axis = 1
    ends: tuple[Tensor, Tensor] | None = None
    dead: Tensor | None = None
    source: tuple[Tensor, int] | None = None
    ratio: tuple[Tensor, Tensor] | None = None
    gradient: Tensor | None = None
    faults: tuple[Tensor | int, Tensor | int] = (0, 0)
    spectrum: tuple[float, float] | None = None
    shape: torch.Size
    dtype: torch.dtype
    norm: Tensor
    total: Tensor
    mean: Tensor

    def __init__(self, recorder: "Recorder", name: str, kind: str) -> None:
        self.recorder, self.name, self.kind = recorder, name, kind

    def backward(self, gradient: Tensor) -> None:
        """Hook on the output: note the gradient's size."""
        recorder = self.recorder
        if recorder.backwards:
            self.gradient = recorder.norm_of(gradient)
            if recorder.careful:
                self.faults = (self.faults[0], _faults(gradient))


class _Station:
    """What is known of a module before it is called."""

    direct: bool | None = None  # as that of a row, where functions inside may come first

    def __init__(self, name: str, module: nn.Module) -> None:
        kind = type(module)
        self.name, self.kind, self.module = name, kind.__name__, module
        self.rectifier = issubclass(kind, RECTIFIERS)
        self.last_axis = True if issubclass(kind, LAST_AXIS) else None
        if issubclass(kind, SECOND_AXIS):
            self.last_axis = False
        self.lookup = issubclass(kind, LOOKUPS)

    @cached_property
    def weights(self) -> list[nn.Parameter]:
        """Matrices that a call uses, or else what it scales by."""
        module = self.module
        if not module._parameters and not module._modules:
            return []
        own = dict(module.named_parameters()) if module._modules else module._parameters
        present = {name: p for name, p in own.items() if p is not None}
        matrices = [p for p in present.values() if p.ndim > 1]
        return matrices or [p for name, p in present.items() if name == "weight"]

    @cached_property
    def weighted(self) -> bool:
        """Whether a call multiplies with a matrix of its own."""
        return not self.lookup and any(p.ndim > 1 for p in self.weights)


class Recorder:
    """Hooks on a module's parts that fill :attr:`rows` while :attr:`forwards` is on.

    Some calls have no rows, such as those under ``torch.vmap``: :attr:`left_out` says what they do.

    Args:
        anatomy: Of the module.
        level: ``"layers"``: a row for each call of a module that multiplies with a matrix;
            ``"modules"``: of every module without parts of its own; ``"additions"``: also for each
            sum of two tensors of one shape, and each activation that is called as a function;
            ``"functions"``: also for every other function that returns numbers.
        careful: Compute in float64 and count what is not finite.
        spectra: Measure the spectrum of every output.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        level: str = "additions",
        *,
        careful: bool = False,
        spectra: bool = False,
    ) -> None:
        self.anatomy, self.level, self.careful, self.spectra = anatomy, level, careful, spectra
        self.rows: list[Row] = []
        self.forwards = self.backwards = False
        self.left_out: set[str] = set()
        self._calls: dict[str, int] = {}
        self._inside: list[tuple[str, int]] = []  # modules with parts that are running, first row
        self._last: tuple[Tensor, Row] | None = None
        self._last_axis = False
        self._waiting: dict[nn.Module, list[Row]] = {}
        self._handles: list[Any] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are there inside the ``with`` statement, and gone after it, also after an error."""
        try:
            self.attach()
            yield
        finally:
            self.detach()

    def attach(self) -> None:
        """Put hooks on all parts, but not on what parametrises weights or is shaped."""
        shaped = {
            id(inner)
            for _, part in self.anatomy.parts
            if isinstance(part, Shaped)
            for inner in part.activation.modules()
        }
        for name, part in self.anatomy.parts:
            if "parametrizations" in name or id(part) in shaped:
                continue
            station = _Station(name or "model", part)
            if isinstance(part, Shaped):
                self._handles.append(part.register_forward_pre_hook(self._arrival(station)))
                self._handles.append(part.register_forward_hook(self._leaf(station)))
            elif part._modules and any(child != "parametrizations" for child in part._modules):
                if self.level != "layers" or station.weighted:
                    enter, leave = self._container(station)
                    self._handles.append(part.register_forward_pre_hook(enter))
                    self._handles.append(part.register_forward_hook(leave))
            elif self.level != "layers" or station.weighted:
                self._handles.append(part.register_forward_hook(self._leaf(station)))

    def detach(self) -> None:
        """Take all hooks away and let tensors go."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._last = [], None
        self._inside, self._waiting = [], {}
        self.forwards = self.backwards = False

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Record calls inside the ``with`` statement."""
        self.forwards = True
        try:
            if self.level in ("layers", "modules") or self._nothing_between():
                yield
            else:
                with Functions(self):
                    yield
        finally:
            self.forwards, self._last, self._inside = False, None, []

    def _nothing_between(self) -> bool:
        """Whether only modules of PyTorch follow each other, so no function is called between."""
        return self.level != "functions" and all(
            type(part) is nn.Sequential
            or (not part._modules and type(part).__module__.startswith("torch.nn.modules."))
            for _, part in self.anatomy.parts
        )

    @property
    def unlinked(self) -> bool:
        """Whether calls of modules gave values that autograd does not follow."""
        return bool(self._waiting)

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Record gradients inside the ``with`` statement."""
        self.backwards = True
        try:
            yield
        finally:
            self.backwards = False

    def _arrival(self, station: _Station) -> Callable[..., None]:
        def before(module: nn.Module, given: tuple[Any, ...]) -> None:
            if self.forwards:
                with undisturbed():
                    station.direct = self.follows(given)

        return before

    def _leaf(self, station: _Station) -> Callable[..., None]:
        def after(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if self.forwards:
                self._record(station, given, output)
            elif self.backwards:
                self._recomputed(module, output)

        return after

    def _container(self, station: _Station) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(module: nn.Module, given: tuple[Any, ...]) -> None:
            if self.forwards:
                self._inside.append((station.name, len(self.rows)))

        def leave(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if not self.forwards or not self._inside:
                return
            _, first = self._inside.pop()
            if not any(row.module is not None for row in self.rows[first:]):
                self._record(station, given, output)  # it called none of its parts

        return enter, leave

    def _record(self, station: _Station, given: tuple[Any, ...], output: Any) -> None:
        value = output if type(output) is Tensor else first_tensor(output)
        if value is not None and value.is_complex():
            self.left_out.add("return complex numbers")
        if value is None or not value.is_floating_point() or value.numel() == 0:
            return
        if self.hidden(value):
            return
        with undisturbed():
            if station.last_axis is not None:  # others keep the layout of what they are given
                self._last_axis = station.last_axis
            if self._last is not None and self._last[0] is value and self._adopt(station, value):
                return
            row = Row(self, self._numbered(station.name), station.kind)
            row.module, row.weights, row.weighted = (
                station.module,
                station.weights,
                station.weighted,
            )
            self._look_at_input(row, given)
            self.note(row, value, rectifier=station.rectifier)

    def _adopt(self, station: _Station, value: Tensor) -> bool:
        """The row of a function becomes that of the module whose output it made."""
        last = self.rows[-1]
        if last.module is not None or last.ratio is not None:
            return False
        self._calls[last.path] -= 1
        if station.weighted or last.axis != self._axis_of(value):
            self.rows.pop()  # to be measured again: its hook listens in vain
            self._last = None
            return False
        last.name, last.kind = self._numbered(station.name), station.kind
        last.module, last.weights = station.module, station.weights
        last.direct = last.direct if station.direct is None else station.direct
        return True

    def _axis_of(self, value: Tensor) -> int:
        return value.ndim - 1 if self._last_axis or value.ndim < 3 else 1

    def note(self, row: Row, value: Tensor, *, rectifier: bool = False) -> None:
        """Measure an output, listen to its gradient, and keep the row.

        Args:
            row: New.
            value: What the call returned.
            rectifier: Whether zeros mean that a feature is off.
        """
        self.rows.append(row)
        if value.requires_grad:
            value.register_hook(row.backward)
        elif row.module is not None:
            self._waiting.setdefault(row.module, []).append(row)
        self._last = (value, row)
        row.shape, row.dtype, axes = value.shape, value.dtype, value.ndim
        x = self.wide(value.detach())
        row.norm = euclidean(x)
        summed = _over_samples(x) if axes > 1 else x
        row.total = row.mean = vector_norm(summed)
        if axes > 2:
            row.axis = self._axis_of(value)
            row.mean = vector_norm(_over_positions(summed, row.axis - 1))
        if row.weighted or row.module is None or x.dtype != value.dtype:
            row.ends = torch.aminmax(x)
        if rectifier and x.ndim > 1:
            row.dead = (x.amax([i for i in range(x.ndim) if i != row.axis]) <= 0).sum()
        if self.careful:
            row.faults = (_faults(x), 0)
        if self.spectra:
            row.spectrum = spectrum(x)

    def _recomputed(self, module: nn.Module, output: Any) -> None:
        """Checkpointing ran this call without autograd first, and runs it again now."""
        value, waiting = first_tensor(output), self._waiting.get(module)
        if waiting and value is not None and value.requires_grad:
            value.register_hook(waiting.pop().backward)

    def wide(self, x: Tensor) -> Tensor:
        """Numbers in a type whose squares and sums have room: float32, float64 if careful."""
        if self.careful and x.device.type != "mps":
            return x.double()
        return x.float() if x.dtype.itemsize < 4 else x

    def norm_of(self, x: Tensor) -> Tensor:
        """Euclidean norm of all entries."""
        return euclidean(self.wide(x.detach()))

    def inside(self) -> str:
        """The innermost module that is running."""
        return self._inside[-1][0] if self._inside else "model"

    def function_row(self, name: str) -> Row:
        """A row for a function, named after the module that is running.

        Args:
            name: Of the function.

        Returns:
            The row, not yet kept.
        """
        path = f"{self.inside()}.{name}"
        row = Row(self, self._numbered(path), name)
        row.path = path
        return row

    def _numbered(self, name: str) -> str:
        times = self._calls[name] = self._calls.get(name, 0) + 1
        return name if times == 1 else f"{name}#{times}"

    def hidden(self, value: Tensor) -> bool:
        """Whether a value is one of many that ``torch.vmap`` computes together: it has no row."""
        if not torch._C._functorch.is_functorch_wrapped_tensor(value):
            return False
        self.left_out.add("run under torch.vmap or another transform")
        return True

    def follows(self, given: tuple[Any, ...]) -> bool:
        """Whether what a call is given is what the call before it put out."""
        value = _input(given)
        return value is not None and self._last is not None and _same(self._last[0], value)

    def _look_at_input(self, row: Row, given: tuple[Any, ...]) -> None:
        row.direct = self.follows(given)
        value = _input(given) if row.weighted else None
        if value is None or not value.is_floating_point() or value.numel() == 0:
            return
        known = self._last[1].norm if row.direct and self._last is not None else None
        row.source = self.norm_of(value) if known is None else known, value.numel()


def _input(given: tuple[Any, ...]) -> Tensor | None:
    return given[0] if given and type(given[0]) is Tensor else first_tensor(given)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same numbers, perhaps in another shape."""
    return a is b or (a.data_ptr() == b.data_ptr() and a.numel() == b.numel())


def _over_samples(x: Tensor) -> Tensor:
    """Sums over the first axis; of many numbers as a product with ones, in a third of the time."""
    n = len(x)
    if x.numel() <= LONG or n > MANY or not x.is_contiguous() or not _is_plain(x.device):
        return x.sum(0)
    return torch.mv(x.view(n, -1).T, x.new_ones(n)).view(x.shape[1:])


def _is_plain(device: torch.device) -> bool:
    """Whether products there keep all digits."""
    return device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _over_positions(summed: Tensor, axis: int) -> Tensor:
    """Sums of features, given sums over samples. ``axis`` counts features there."""
    return summed.sum([i for i in range(summed.ndim) if i != axis])


def _faults(x: Tensor) -> Tensor:
    """How many entries are nan or infinite."""
    return (~x.isfinite()).sum()
