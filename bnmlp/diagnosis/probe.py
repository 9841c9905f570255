"""One forward and one backward pass through any module, recorded call by call."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnmlp.diagnosis.anatomy import Anatomy
from bnmlp.diagnosis.forms import LossFunction, detached, output_of, score_of
from bnmlp.diagnosis.kept import everything_kept
from bnmlp.diagnosis.recorder import Recorder, Row
from bnmlp.diagnosis.weights import SAFE, numbers
from bnmlp.machine.precision import float64

FAR = 110  # powers of two by which gradients are moved away from the end that they ran into


@dataclass
class Pass:
    """What one pass recorded.

    Attributes:
        rows: Calls in the order of execution.
        gradients: By the names of parameters, times ``scale``; None where the loss does not depend
            on one.
        scale: Factor on all gradients, a power of two.
        loss: Its value.
        words: What the loss is.
        accuracy: Share of labels that are right, or None.
        careful: Whether numbers are in float64 and what is not finite was counted.
        left_out: What calls do that have no rows, in words.
    """

    rows: list[Row]
    gradients: dict[str, Tensor | None]
    scale: float
    loss: Tensor
    words: str
    accuracy: Tensor | None
    careful: bool
    left_out: frozenset[str] = frozenset()

    @cached_property
    def norms(self) -> np.ndarray:
        """Of the outputs, by row."""
        return np.asarray(numbers([row.norm for row in self.rows]).numpy())

    @cached_property
    def output_gradients(self) -> np.ndarray:
        """Norms of gradients in the outputs, by row, times ``scale``; nan where there is none."""
        found = np.full(len(self.rows), np.nan)
        present = [i for i, row in enumerate(self.rows) if row.gradient is not None]
        found[present] = numbers([row.gradient for row in self.rows if row.gradient is not None])
        return found


@dataclass(frozen=True)
class Setting:
    """How passes are made.

    Attributes:
        loss_fn: See :func:`bnmlp.diagnosis.forms.score_of`.
        level: See :class:`bnmlp.diagnosis.recorder.Recorder`.
        spectra: See there.
        training: Mode of the module; as it is if None.
        factor: By which a gradient scaler multiplies the loss.
    """

    loss_fn: LossFunction | None = None
    level: str = "additions"
    spectra: bool = False
    training: bool | None = True
    factor: float = 1.0


def one_pass(anatomy: Anatomy, x: Any, y: Any, setting: Setting) -> Pass:
    """Run a module forward and back, once more with care where numbers leave a safe range.

    Args:
        anatomy: Of any module; it is left as it was, bit for bit.
        x: Its input, see :func:`bnmlp.diagnosis.forms.output_of`.
        y: Targets, or None.
        setting: How.

    Returns:
        What was recorded.

    Raises:
        ValueError: If output and targets give no loss.
    """
    found = _attempt(anatomy, x, y, setting)
    shift = _shift(found)
    return found if shift is None else _attempt(anatomy, x, y, setting, careful=True, shift=shift)


def _attempt(
    anatomy: Anatomy, x: Any, y: Any, setting: Setting, *, careful: bool = False, shift: int = 0
) -> Pass:
    model, parts = anatomy.module, [part for _, part in anatomy.parts]
    recorder = Recorder(anatomy, setting.level, careful=careful, spectra=setting.spectra)
    kept = everything_kept(model, setting.training, parts)
    with kept, torch.enable_grad(), recorder.attached():
        with recorder.forward():
            output = output_of(model, detached(x))
        score = score_of(output, y, setting.loss_fn)
        del output
        scale = setting.factor if setting.factor != 1 else _natural_scale(score.loss, score.output)
        scale *= 2.0**shift
        parameters = {k: p for k, p in anatomy.parameters.items() if p.requires_grad}
        with recorder.backward():
            gradients = _gradients(score.loss, parameters, scale, recorder.unlinked)
    return Pass(
        recorder.rows, gradients, scale, score.loss.detach(), score.words, score.accuracy, careful,
        frozenset(recorder.left_out),
    )  # fmt: skip


def _natural_scale(loss: Tensor, output: Tensor | None) -> float:
    """A power of two that takes the gradient in the output to a norm near one."""
    # Gradients then have the size that the network gives them, whatever the loss is multiplied by.
    if output is None or not output.requires_grad or output is loss:
        return 1.0
    (found,) = torch.autograd.grad(loss, output, retain_graph=True, allow_unused=True)
    if found is None:
        return 1.0
    size = float(float64(found).norm())
    if not (0 < size < float("inf")):
        return 1.0
    return 2.0 ** -round(min(120.0, max(-120.0, math.log2(size))))


def _gradients(
    loss: Tensor, parameters: dict[str, nn.Parameter], scale: float, unlinked: bool
) -> dict[str, Tensor | None]:
    """Gradients of the scaled loss.

    Args:
        loss: A number.
        parameters: By name.
        scale: Of the loss.
        unlinked: Whether calls ran without autograd. The reentrant kind of checkpointing runs
            them again in ``backward()``, and ``autograd.grad`` does not see them.

    Returns:
        By name; None where the loss does not depend on a parameter.
    """
    seed = torch.full_like(loss, scale)
    # An optimiser that steps in hooks on its parameters must not run.
    hooked = any(getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters.values())
    if not parameters or (unlinked and not hooked):
        loss.backward(seed)
        return {name: p.grad for name, p in parameters.items()}
    found = torch.autograd.grad(loss, list(parameters.values()), seed, allow_unused=True)
    return dict(zip(parameters, found, strict=True))


def _shift(found: Pass) -> int | None:
    """Whether to look again with care, and by which power of two to move gradients."""
    sizes = found.output_gradients
    sizes = sizes[[row.gradient is not None for row in found.rows]]
    if all(((size > SAFE[0]) & (size < SAFE[1])).all() for size in (sizes, found.norms)):
        return None
    too_large, too_small = bool((~(sizes < SAFE[1])).any()), bool((sizes < SAFE[0]).any())
    return (FAR if too_small else 0) - (FAR if too_large else 0)
