"""The forms in which people give batches, call their networks and score them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bnmlp.layers.seeds import random_source
from bnmlp.machine.structures import applied, first_tensor, mapped, tensors_of
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
        TypeError: If something holds no tensors but what would have to be made into some, or a
            loader comes with targets beside its own.
        ValueError: If an iterable or a batch is empty.
    """
    if isinstance(x, Dataset):
        raise TypeError(
            "measure: a dataset gives single samples; pass torch.utils.data.DataLoader(dataset, "
            "batch_size=...), which gives batches"
        )
    if isinstance(x, DataLoader) and y is not None:
        raise TypeError("measure: a loader brings its own targets; leave y out")
    for given, targets in _batches_of(x, y, most):
        _refuse_batch(given, targets)
        yield given, targets


def _batches_of(x: Any, y: Any, most: int) -> Iterator[tuple[Any, Any]]:
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


def _refuse_batch(x: Any, y: Any) -> None:
    for name, value in (("x", x), ("y", y)):
        parts = list(value.values()) if isinstance(value, Mapping) else value
        parts = parts if isinstance(parts, (tuple, list)) else [parts]
        if any(isinstance(part, np.ndarray) for part in parts):
            raise TypeError(f"measure: {name} holds arrays of NumPy; give torch.as_tensor of them")
        if any(t.is_meta for t in tensors_of(value)):
            raise ValueError(f"measure: {name} is on the device 'meta' and holds no numbers")
    if (sizes := [t.numel() for t in tensors_of(x)]) and not any(sizes):
        raise ValueError("measure: the batch is empty; give at least one sample, better a hundred")


def output_of(model: nn.Module, x: Any) -> Any:
    """What the model returns for a tensor, a tuple or list of arguments, or a dict of them.

    Args:
        model: Any module.
        x: Stays as it is, also where the model overwrites what it is given.

    Returns:
        Whatever it returns. An error of the model is raised as it is, with a note that says what
        the model was called with.
    """
    given = mapped(x, torch.clone)
    try:
        return applied(model, given)
    except Exception as error:
        error.add_note(f"measure: the model failed when it was called with {described(x)}")
        if "more than 1 value per channel" in str(error):
            error.add_note(
                "measure: batch normalisation in training mode needs at least two numbers for each "
                "channel; give more samples, or training=False"
            )
        raise


def described(x: Any) -> str:
    """Types and shapes of what a module is called with, in words."""
    if isinstance(x, Mapping):
        return ", ".join(f"{key}={described(value)}" for key, value in x.items()) or "nothing"
    if type(x) in (tuple, list):
        count = "1 argument" if len(x) == 1 else f"{len(x)} arguments"
        return f"{count}: {', '.join(map(described, x))}"
    if isinstance(x, Tensor):
        kind = str(x.dtype).removeprefix("torch.")
        return f"a tensor of shape {tuple(x.shape)}, {kind}, on {x.device}"
    return f"a {type(x).__name__}"


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
    y = mapped(y, torch.clone)
    logits = logits_of(output)
    if loss_fn is not None:
        loss = loss_called(loss_fn, output, y)
        return Score(one_number(loss), _name(loss_fn), logits, _accuracy(logits, y))
    if y is None:
        return _own_loss(output, logits)
    if logits is None:
        _refuse_output(output)
    loss, words = default_loss(logits, y)
    return Score(one_number(loss), words, logits, _accuracy(logits, y))


def loss_called(loss_fn: LossFunction, output: Any, y: Any) -> Any:
    """What a loss says of output and targets; of the output alone where there are no targets."""
    try:
        if y is not None:
            return loss_fn(output, y)
        try:
            return loss_fn(output, None)
        except TypeError:
            return cast(Callable[[Any], Any], loss_fn)(output)
    except Exception as error:
        error.add_note(
            f"loss_fn failed; it is called with the output, here {described(output)}, and the "
            f"targets, here {described(y)}, in this order"
        )
        raise


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


def one_number(loss: Any) -> Tensor:
    """A loss that autograd can begin from.

    Args:
        loss: What a loss function returned.

    Returns:
        The same, without axes.

    Raises:
        ValueError: If it is not one real number that depends on a parameter.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"measure: the loss must be one number, got {shape}; reduce it to its mean"
        )
    if loss.is_complex():
        raise ValueError("measure: the loss is a complex number; take its real part or its square")
    if not loss.requires_grad:
        raise ValueError(
            "measure: the loss depends on no parameter; has the model any, does it detach its "
            "output, or compute under torch.no_grad?"
        )
    return loss.reshape(())


def _own_loss(output: Any, logits: Tensor | None) -> Score:
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if own is None and isinstance(output, Tensor) and output.numel() == 1:
        own = output
    if isinstance(own, Tensor):
        return Score(one_number(own), "the model's own loss", logits if logits is not own else None)
    if logits is None:
        _refuse_output(output)
    direction = torch.randn(logits.shape, generator=random_source(0), device="cpu").to(logits)
    loss = (logits * direction).mean()
    return Score(one_number(loss), "product of the output with a random direction", logits)


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
