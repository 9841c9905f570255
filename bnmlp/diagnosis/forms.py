"""The forms in which people give batches, call their networks and score them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnmlp.diagnosis.kept import first_tensor
from bnmlp.layers.seeds import random_source
from bnmlp.machine.modes import ordinary

LossFunction = Callable[[Any, Any], Tensor]
LOGITS = ("logits", "out", "prediction", "predictions")  # names that outputs of models use


@dataclass
class Score:
    """How an output was scored.

    Attributes:
        loss: A number, for autograd.
        words: What it is.
        output: The tensor that the loss was computed from; None where the model gave the loss.
        accuracy: Share of labels that are right; None where there are none.
    """

    loss: Tensor
    words: str
    output: Tensor | None
    accuracy: Tensor | None = None


def batches_of(x: Any, y: Any, most: int) -> Iterator[tuple[Any, Any]]:
    """Inputs and targets, batch by batch.

    Args:
        x: One batch as a tensor, a tuple of arguments or a dict of them; or, without ``y``, any
            other iterable of batches, each a pair or a dict.
        y: Targets of one batch, or None.
        most: How many batches to take of an iterable.

    Yields:
        Pairs of arguments and targets, these None where a batch has none.

    Raises:
        ValueError: If an iterable is empty.
    """
    if y is not None or isinstance(x, (Tensor, Mapping, tuple)) or not isinstance(x, Iterable):
        yield x, y
        return
    empty = True
    for batch in islice(x, most):
        empty = False
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        yield (batch[0], batch[1]) if pair else (batch, None)
    if empty:
        raise ValueError("measure: the iterable of batches is empty; give it again, not used up")


def output_of(model: nn.Module, x: Any) -> Any:
    """What the model returns for a tensor, a tuple or list of arguments, or a dict of them."""
    if isinstance(x, Mapping):
        return model(**{name: _usable(value) for name, value in x.items()})
    if type(x) in (tuple, list):  # not tuples with names, as packed sequences
        return model(*map(_usable, x))
    return model(_usable(x))


def score_of(output: Any, y: Any, loss_fn: LossFunction | None) -> Score:
    """The loss of an output.

    Args:
        output: What the model returned.
        y: Targets, or None.
        loss_fn: Called with output and targets; by default cross entropy for integer targets, mean
            squared error for others, and without targets the output's own loss or, failing that,
            its product with a random direction.

    Returns:
        The loss and what it is.

    Raises:
        ValueError: If no loss of one number comes out, with the remedy.
    """
    y = _usable(y)
    logits = logits_of(output)
    if loss_fn is not None:
        loss = loss_fn(output, y) if y is not None else _alone(loss_fn, output)
        return Score(_number(loss), _name(loss_fn), logits, _accuracy(logits, y))
    if y is None:
        return _own_loss(output, logits)
    if not isinstance(y, Tensor) or logits is None:
        raise ValueError(
            f"measure: no loss is known for targets of type {type(y).__name__} and an output of "
            f"type {type(output).__name__}; pass loss_fn=, which is called with both"
        )
    if y.dtype == torch.bool or y.is_complex():
        raise ValueError(f"measure: no loss is known for targets of {y.dtype}; pass loss_fn=")
    if y.is_floating_point():
        return _squared_error(logits, y)
    flat, labels = _classes(logits, y)
    loss = F.cross_entropy(flat.float() if flat.dtype.itemsize < 4 else flat, labels)
    return Score(loss, "mean cross entropy", logits, _accuracy(logits, y))


def logits_of(output: Any) -> Tensor | None:
    """The tensor of an output that holds what is predicted: by its name, or the first."""
    if isinstance(output, Mapping):
        output = next((output[name] for name in LOGITS if name in output), output)
    elif not isinstance(output, Tensor):
        found = (getattr(output, name, None) for name in LOGITS)
        output = next((value for value in found if isinstance(value, Tensor)), output)
    return first_tensor(output)


def samples_of(x: Any) -> int | None:
    """How many samples are in a batch: the length of its first tensor."""
    parts = list(x.values()) if isinstance(x, Mapping) else x
    parts = parts if isinstance(parts, (tuple, list)) else [parts]
    found = [part for part in parts if isinstance(part, Tensor) and part.ndim]
    return len(found[0]) if found else None


def detached(x: Any) -> Any:
    """An input whose tensors' ``.grad`` and history no backward pass reaches."""
    if isinstance(x, Mapping):
        return {name: detached(value) for name, value in x.items()}
    if type(x) in (tuple, list):
        return [detached(value) for value in x]
    if isinstance(x, Tensor) and x.requires_grad:
        return x.detach().requires_grad_()
    return x


def _usable(value: Any) -> Any:
    return ordinary(value) if isinstance(value, Tensor) else value


def _alone(loss_fn: Callable[..., Tensor], output: Any) -> Tensor:
    try:
        return loss_fn(output, None)
    except TypeError:
        return loss_fn(output)


def _number(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"measure: the loss must be one number, got {shape}; reduce it to its mean"
        )
    if not loss.requires_grad:
        raise ValueError(
            "measure: the loss depends on no parameter; does the model detach its output, or "
            "compute under torch.no_grad?"
        )
    return loss.reshape(())


def _own_loss(output: Any, logits: Tensor | None) -> Score:
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if own is None and isinstance(output, Tensor) and output.numel() == 1:
        own = output
    if isinstance(own, Tensor):
        return Score(_number(own), "the model's own loss", logits if logits is not own else None)
    if logits is None:
        raise ValueError(
            f"measure: found no floating-point tensor in an output of type "
            f"{type(output).__name__}; pass loss_fn="
        )
    direction = torch.randn(logits.shape, generator=random_source(0), device="cpu").to(logits)
    loss = (logits * direction).mean()
    return Score(_number(loss), "product of the output with a random direction", logits)


def _squared_error(logits: Tensor, y: Tensor) -> Score:
    if logits.numel() != y.numel() or len(logits) != len(y):
        raise ValueError(
            f"measure: output of shape {tuple(logits.shape)} and targets of shape "
            f"{tuple(y.shape)}; pass loss_fn=, or integer labels for cross entropy"
        )
    return Score(
        F.mse_loss(logits, y.reshape(logits.shape).to(logits)), "mean squared error", logits
    )


def _classes(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``(N, classes)`` and labels ``(N,)``; classes last as in language, or second."""
    if logits.shape[:-1] == y.shape:
        return logits.flatten(0, -2) if logits.ndim > 1 else logits[None], y.long().reshape(-1)
    if logits.ndim > 1 and (logits.shape[0], *logits.shape[2:]) == tuple(y.shape):
        return logits.movedim(1, -1).flatten(0, -2), y.long().reshape(-1)
    if logits.ndim == y.ndim + 2 and len(logits) == 1 and logits.shape[1:-1] == y.shape:
        return logits[0].flatten(0, -2), y.long().reshape(-1)  # one replica
    raise ValueError(
        f"measure: output of shape {tuple(logits.shape)} and labels of shape {tuple(y.shape)} do "
        "not fit; classes are the last or the second axis. Pass loss_fn= for another loss"
    )


def _accuracy(logits: Tensor | None, y: Any) -> Tensor | None:
    if logits is None or not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex():
        return None
    try:
        flat, labels = _classes(logits.detach(), y)
    except ValueError:
        return None
    known = labels >= 0  # -100 marks what a loss leaves out
    return (flat.argmax(-1) == labels)[known].double().mean()


def _name(loss_fn: object) -> str:
    return str(getattr(loss_fn, "__name__", type(loss_fn).__name__))
