"""The forms in which people give batches, call their networks and score them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from bnmlp.layers.seeds import random_source
from bnmlp.machine.modes import ordinary
from bnmlp.machine.structures import applied, first_tensor, mapped
from bnmlp.networks.losses import default_loss, right_labels

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
    return applied(model, mapped(x, ordinary))


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
    y = mapped(y, ordinary)
    logits = logits_of(output)
    if loss_fn is not None:
        loss = loss_called(loss_fn, output, y)
        return Score(_number(loss), _name(loss_fn), logits, _accuracy(logits, y))
    if y is None:
        return _own_loss(output, logits)
    if logits is None:
        _refuse_output(output)
    loss, words = default_loss(logits, y)
    return Score(loss, words, logits, _accuracy(logits, y))


def loss_called(loss_fn: LossFunction, output: Any, y: Any) -> Any:
    """What a loss says of output and targets; of the output alone where there are no targets."""
    if y is not None:
        return loss_fn(output, y)
    try:
        return loss_fn(output, None)
    except TypeError:
        return cast(Callable[[Any], Any], loss_fn)(output)


def logits_of(output: Any) -> Tensor | None:
    """The tensor of an output that holds what is predicted: by its name, or the first."""
    if isinstance(output, Mapping):
        output = next((output[name] for name in LOGITS if name in output), output)
    elif not isinstance(output, Tensor):
        found = (getattr(output, name, None) for name in LOGITS)
        output = next((value for value in found if isinstance(value, Tensor)), output)
    return first_tensor(output)


def detached(x: Any) -> Any:
    """An input whose tensors' ``.grad`` and history no backward pass reaches."""
    return mapped(x, lambda t: t.detach().requires_grad_() if t.requires_grad else t)


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
        _refuse_output(output)
    direction = torch.randn(logits.shape, generator=random_source(0), device="cpu").to(logits)
    loss = (logits * direction).mean()
    return Score(_number(loss), "product of the output with a random direction", logits)


def _refuse_output(output: Any) -> NoReturn:
    raise ValueError(
        f"measure: found no floating-point tensor in an output of type {type(output).__name__}; "
        "pass loss_fn="
    )


def _accuracy(logits: Tensor | None, y: Any) -> Tensor | None:
    right = None if logits is None else right_labels(logits, y)
    return None if right is None else right.double().mean()


def _name(loss_fn: object) -> str:
    return str(getattr(loss_fn, "__name__", type(loss_fn).__name__))
