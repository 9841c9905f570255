"""Running statistics of any module set anew, layer by layer."""

import contextlib
import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.linalg import vector_norm
from torch.nn.utils.rnn import PackedSequence

from bnmlp.layers.normalization import refuse_single_sample
from bnmlp.machine.precision import float64
from bnmlp.machine.randomness import random_state_kept
from bnmlp.machine.structures import applied, mapped, moved
from bnmlp.networks.protocol import averages_kept, averaging
from bnmlp.networks.wrappers import unwrapped

MANY = 36  # positions, from which sums over them are worth while
FEW = 1024  # samples; one running sum over more loses digits
FAR = 10.0  # squared mean in units of the variance, up to which the variance is a difference
NORMS = nn.modules.batchnorm._NormBase  # batch norms, synchronised ones too, and instance norms
INSTANCE_NORMS = nn.modules.instancenorm._InstanceNorm


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance of each channel over some part of a set.

    Attributes:
        count: Numbers behind each mean; of an instance norm, instances.
        mean: Shape ``(C,)``.
        var: Shape ``(C,)``.
    """

    count: int
    mean: Tensor
    var: Tensor

    def pooled(self, other: "Moments", between: bool = True) -> "Moments":
        """Moments of this part and another together.

        Args:
            other: Of the other part.
            between: Count the gap between the means as variance, as one large batch does; if
                false variances are averaged, as instance norm does with those of its instances.

        Returns:
            The pooled moments.
        """
        share = other.count / (self.count + other.count)
        mean, var = float64(self.mean), float64(self.var)
        gap = other.mean - mean
        var = torch.lerp(var, float64(other.var), share)
        var = var + share * (1 - share) * gap.square() if between else var
        return Moments(self.count + other.count, mean + share * gap, var)


Norm = Any  # a module with running averages
Statistics = dict[Norm, Moments]
BeforeCall = Callable[[Norm, Tensor], None]


class _ReachedError(BaseException):
    """Stops a pass at the layer that is measured; no Exception, so that no network swallows it."""


def recalibrate_module(module: nn.Module, batches: Iterable[Any], *, exact: bool = True) -> None:
    """Set the running averages in a module to the statistics of some batches.

    Each layer is measured behind layers that use theirs already, over all batches together. For one
    batch that is one pass; for several, one for each call of a norm, as far as that call. A norm
    that is called several times keeps what its calls pool; the layers behind its first call are
    then measured once more.

    Args:
        module: Any module; nothing changes where none keeps averages.
        batches: Of samples, of tuples that begin with them, or of dicts of named arguments.
        exact: If false, one pass for all batches: each is normalised with its own statistics, as in
            training, and these are pooled.

    Raises:
        ValueError: If there is no batch, a variance would be that of one number, statistics are not
            finite, or batches take different ways through the module. Nothing has changed then.
    """
    module, _ = unwrapped(module)
    norms, own = _norms_of(module)
    if not norms and not own:
        return
    batches = _held(batches)
    with averages_kept(module, training=False), random_state_kept(), without_compiler():
        found = _statistics_of(module, norms, own, batches, exact)
    _refuse_not_finite(module, found)
    for norm, pooled in found.items():
        write(norm, pooled)


def output_behind(module: nn.Module, batches: Iterable[Any], x: Any) -> Any:
    """The output for some samples with the statistics of others, as :func:`recalibrate_module` has.

    Args:
        module: In evaluation mode, which keeps averages; its buffers and the random state are for
            the caller to put back.
        batches: For the statistics.
        x: What the module is called with.

    Returns:
        What it returns.

    Raises:
        ValueError: As there.
    """
    norms, own = _norms_of(module)
    found = _statistics_of(module, norms, own, _held(batches), exact=True)
    _refuse_not_finite(module, found)
    for norm, pooled in found.items():
        write(norm, pooled)
    return call_module(module, x)


def _statistics_of(
    module: nn.Module, norms: list[Norm], own: list[Norm], batches: Iterable[Any], exact: bool
) -> Statistics:
    """Statistics by norm; see :func:`recalibrate_module`. Averages change on the way."""
    several = _number(batches) != 1
    if own and several:
        raise ValueError(
            f"recalibration: {type(own[0]).__name__} keeps averages in a way of its own, which "
            "needs all samples in one tensor; join the batches"
        )
    samples = _samples_of(own, batches)
    sweep = _staged if exact and several else _at_once
    with _renewing(own):
        found, reused = sweep(module, norms, batches, {})
    if reused:
        found, _ = sweep(module, norms, batches, {norm: found[norm] for norm in reused})
    return found | {norm: _renewed(norm, samples) for norm in own}


def _at_once(
    module: nn.Module, norms: list[Norm], batches: Iterable[Any], fixed: Statistics
) -> tuple[Statistics, set[Norm]]:
    """One pass: each batch behind its own statistics, which are pooled. Norms called repeatedly."""
    total: Statistics = {}
    reused: set[Norm] = set()
    for given in _inputs(module, batches):
        seen: Statistics = {}

        def before(norm: Norm, x: Tensor, seen: Statistics = seen) -> None:
            now = fixed.get(norm) or moments(norm, x)
            if norm in seen and norm not in fixed:
                reused.add(norm)
            _add(seen, norm, now)
            write(norm, now)

        def after(norm: Norm, *_: Any, seen: Statistics = seen) -> None:
            if norm in reused:
                write(norm, seen[norm])

        with before_calls(norms, before), _hooks(n.register_forward_hook(after) for n in norms):
            call_module(module, given)
        for norm, pooled in seen.items():
            _add(total, norm, _lasting(norm, pooled))
    return total, reused


def _lasting(norm: Norm, found: Moments) -> Moments:
    """Moments after a pass: what torch.vmap hands to a hook is gone then, and in the buffers."""
    if not is_functorch_wrapped_tensor(found.mean):
        return found
    mean, var = (float64(v).clone() for v in (norm.running_mean, norm.running_var))
    return Moments(found.count, mean, var)


def _staged(
    module: nn.Module, norms: list[Norm], batches: Iterable[Any], fixed: Statistics
) -> tuple[Statistics, set[Norm]]:
    """One pass for each call, behind calls whose statistics are known already."""
    known: list[tuple[Norm, Moments]] = []
    while stage := _next_call(module, norms, batches, known, fixed):
        known.append(stage)
    total, reused = dict(fixed), set()
    for norm, found in known:
        if found.count < 2 and not isinstance(norm, INSTANCE_NORMS):
            _refuse_one_number(norm)
        if norm in total:
            reused.add(norm)
        _add(total, norm, found)
    return total, reused


def _next_call(
    module: nn.Module,
    norms: list[Norm],
    batches: Iterable[Any],
    known: list[tuple[Norm, Moments]],
    fixed: Statistics,
) -> tuple[Norm, Moments] | None:
    """The call after those that are known, over all batches; None where there is none."""
    total: Statistics = {}
    ways = set()
    for given in _inputs(module, batches):
        numbers = itertools.count()

        def before(norm: Norm, x: Tensor, numbers: Iterator[int] = numbers) -> None:
            if norm in fixed:
                return write(norm, fixed[norm])
            i = next(numbers)
            if i == len(known):
                _add(total, norm, moments(norm, x, least=1))
                raise _ReachedError
            if known[i][0] is not norm:
                _refuse_other_ways()
            return write(norm, known[i][1])

        try:
            with before_calls(norms, before):
                call_module(module, given)
            ways.add(True)
        except _ReachedError:
            ways.add(False)
    if len(ways) > 1 or len(total) > 1:
        _refuse_other_ways()
    return next(iter(total.items()), None)


def _refuse_other_ways() -> None:
    raise ValueError(
        "recalibration: batches call norms in different orders, so no layer is before another; "
        "pass exact=False"
    )


def _add(total: Statistics, norm: Norm, found: Moments) -> None:
    between = not isinstance(norm, INSTANCE_NORMS)
    total[norm] = total[norm].pooled(found, between) if norm in total else found


def moments(norm: Norm, x: Tensor, least: int = 2) -> Moments:
    """Moments of what a norm of PyTorch normalises with in training.

    Args:
        norm: Batch norm or instance norm.
        x: What it is given. Shape ``(n, C, ...)``, of an instance norm also ``(C, ...)``.
        least: Numbers that there must be behind a variance.

    Returns:
        Its moments.

    Raises:
        ValueError: If there are fewer.
    """
    instances = isinstance(norm, INSTANCE_NORMS)
    if instances and x.ndim == norm._get_no_batch_dim():
        x = x.unsqueeze(0)
    axes = [i for i in range(x.ndim) if i != 1 and not (instances and i == 0)]
    seen = math.prod(x.shape[i] for i in axes)
    if seen < (2 if instances else least):
        _refuse_one_number(norm)
    wide = x.float() if x.dtype.itemsize < 4 else x
    if not instances:
        return Moments(seen, *_mean_and_variance(wide, axes))
    var, mean = map(float64, torch.var_mean(wide, axes, correction=0))
    return Moments(len(x), mean.mean(0), var.mean(0))


def _mean_and_variance(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    """Of each channel, by what takes less time than torch.var_mean where there is something."""
    if x.ndim == 2 and len(x) <= FEW and _is_plain(x):
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    if x.ndim == 2:
        mean = x.mean(0)
        return mean, (x - mean).square().mean(0)
    if _are_images(x):
        return _of_images(x, axes)
    var, mean = torch.var_mean(x, axes, correction=0)
    return float64(mean), float64(var)


def _are_images(x: Tensor) -> bool:
    """Whether there are many numbers in a row, and what is computed may be looked at."""
    positions = x.shape[2:].numel()
    return x.ndim > 2 and MANY <= positions and x.is_contiguous() and _is_plain(x)


def _is_plain(x: Tensor) -> bool:
    """Whether operations of the CPU see the numbers themselves."""
    return x.device.type == "cpu" and not is_functorch_wrapped_tensor(x)


def _of_images(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and variance of channels by sums, in a fifth of the time that torch.var_mean takes."""
    rows = x.flatten(2)
    mean = float64(rows.mean(2)).mean(0)
    square = float64(vector_norm(rows, dim=2)).square().mean(0) / rows.shape[2]
    var = square - mean.square()
    far = ~(mean.square() < FAR * var)  # digits are lost where the mean is large; or not finite
    if far.any():
        var[far] = float64(torch.var(x[:, far], axes, correction=0))
    return mean, var


def _refuse_one_number(norm: Norm) -> None:
    raise ValueError(
        f"{type(norm).__name__}: recalibration with a batch of 1 sample, which is one number for "
        "each channel and has no variance; give at least 2 samples"
    )


def write(norm: Norm, found: Moments) -> None:
    """Make a norm's running averages these."""
    norm.running_mean.copy_(found.mean)
    norm.running_var.copy_(found.var)


def before_calls(
    norms: Iterable[Norm], function: BeforeCall
) -> contextlib.AbstractContextManager[None]:
    """Call a function with each of some modules and its input before the module is called."""

    def hook(norm: Norm, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        function(norm, given[0] if given else next(iter(named.values())))

    return _hooks(norm.register_forward_pre_hook(hook, with_kwargs=True) for norm in norms)


@contextlib.contextmanager
def _hooks(handles: Iterable[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()


def tracking(module: nn.Module) -> list[Norm]:
    """Norms of PyTorch in a module that keep running averages.

    Args:
        module: Any module.

    Returns:
        The norms, in order of registration.

    Raises:
        ValueError: If one is lazy and has not seen a batch.
    """
    return _norms_of(module)[0]


def _norms_of(module: nn.Module) -> tuple[list[Norm], list[Norm]]:
    """Norms of PyTorch that keep averages, and what else moves its averages by a momentum."""
    found: list[Norm] = list(averaging(module))
    norms: list[Norm] = [m for m in found if isinstance(m, NORMS)]
    if any(nn.parameter.is_lazy(m.running_mean) for m in norms):
        raise ValueError("a lazy norm knows no width yet; put one batch through the module first")
    others = (m for m in found if not isinstance(m, NORMS))
    return norms, [m for m in others if isinstance(getattr(m, "momentum", None), float)]


@contextlib.contextmanager
def _renewing(own: list[Norm]) -> Iterator[None]:
    """One training pass replaces their averages."""
    kept = [(module, module.training, module.momentum) for module in own]
    try:
        for module in own:
            module.training, module.momentum = True, 1.0
        yield
    finally:
        for module, training, momentum in kept:
            module.training, module.momentum = training, momentum


def _samples_of(own: list[Norm], batches: Iterable[Any]) -> int:
    """Samples that they normalise together."""
    if not own:
        return 0
    n = input_of(next(iter(batches))).shape[-2]
    refuse_single_sample("recalibration", n)
    return n


def _renewed(norm: Norm, n: int) -> Moments:
    """Its averages after such a pass; what it keeps is the unbiased variance, as PyTorch does."""
    return Moments(n, norm.running_mean.clone(), norm.running_var * ((n - 1) / n))


def _refuse_not_finite(module: nn.Module, statistics: Statistics) -> None:
    if not statistics:
        raise ValueError("recalibration: no norm was called; is there a batch at all?")
    values = [v.flatten().cpu() for found in statistics.values() for v in (found.mean, found.var)]
    if torch.cat(values).isfinite().all():
        return
    names = {part: name for name, part in module.named_modules()}
    for norm, found in statistics.items():
        if not (found.mean.isfinite().all() and found.var.isfinite().all()):
            raise ValueError(
                f"recalibration: statistics of {names[norm] or 'the module'} are not finite; "
                "samples or weights hold nan or inf, or a layer before it overflows"
            )


def _held(batches: Iterable[Any]) -> Iterable[Any]:
    """Batches that can be had more than once."""
    return list(batches) if isinstance(batches, Iterator) else batches


def _number(batches: Iterable[Any]) -> int | None:
    """How many, if they know."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


def _inputs(module: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    """What the module is called with, where it is."""
    place = next(itertools.chain(module.parameters(), module.buffers())).device
    empty = True
    for batch in batches:
        empty = False
        yield moved(input_of(batch), place)
    if empty:
        raise ValueError(
            "recalibration: no batches; the loader is empty, or gives its batches only once (then "
            "pass a list of them)"
        )


def input_of(batch: Any) -> Any:
    """What a module is called with: of samples with labels, the samples."""
    with_labels = isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence)
    return batch[0] if with_labels else batch


def call_module(module: nn.Module, given: Any) -> Any:
    """Call a module, without autograd, with a tensor, a tuple of arguments, or a dict of them.

    Args:
        module: Any module.
        given: Stays as it is, also where the module overwrites what it is given.

    Returns:
        Whatever it returns.
    """
    with warnings.catch_warnings():  # checkpointing misses gradients that nobody asks for
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad", UserWarning)
        return applied(module, mapped(given, torch.clone))


def without_compiler() -> contextlib.AbstractContextManager[Any]:
    """Hooks are called also where ``torch.compile`` would leave them out."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled; its import takes seconds
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")
