"""Tensors in what networks take and return: tuples, mappings, data classes, packed sequences."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Leaf = Tensor | PackedSequence


def applied(function: Callable[..., Any], given: Any) -> Any:
    """Call a function with what is given for it.

    Args:
        function: Also a module.
        given: Named arguments, if a mapping; arguments, if a plain tuple or list; or else the one
            argument, such as a tensor, a packed sequence or any other tuple with names.

    Returns:
        What it returns.
    """
    if isinstance(given, Mapping):
        return function(**given)
    return function(*given) if type(given) in (tuple, list) else function(given)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors, depth first; of a packed sequence its numbers."""
    for leaf in _leaves(value):
        yield leaf if isinstance(leaf, Tensor) else leaf.data


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of floating-point numbers, depth first."""
    fitting = (t for t in tensors_of(value) if t.is_floating_point() and t.layout == torch.strided)
    return next(fitting, None)


def samples_of(value: Any) -> int | None:
    """How many samples there are: the length of the first tensor that has an axis."""
    lengths = (_length(leaf) for leaf in _leaves(value))
    return next((n for n in lengths if n is not None), None)


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with a function of each tensor; of packed sequences, of their numbers."""

    def of_leaf(leaf: Leaf) -> Leaf:
        if isinstance(leaf, PackedSequence):
            return leaf._replace(data=function(leaf.data))
        return function(leaf)

    return _rebuilt(value, of_leaf)


def moved(value: Any, device: torch.device) -> Any:
    """The same structure with all tensors on a device."""
    return _rebuilt(value, lambda leaf: leaf.to(device))


def sliced(value: Any, index: Tensor, n: int) -> Any:
    """The same structure with some samples of everything that has n of them.

    Args:
        value: Any structure.
        index: Which samples.
        n: What counts so many on its first axis counts samples; the rest stays as it is.

    Returns:
        The structure.
    """
    return _rebuilt(value, lambda leaf: _chosen(leaf, index) if _length(leaf) == n else leaf)


def joined(parts: Sequence[tuple[Tensor, Any]], n: int) -> Any:
    """Put together what holds some of n samples each: the reverse of :func:`sliced`.

    Args:
        parts: Which samples, and a structure; all of one form.
        n: How many samples there are.

    Returns:
        The structure of all. What does not count samples is that of the first part.
    """
    leaves = [_leaves(value) for _, value in parts]

    def of_leaf(_: Leaf) -> Leaf:
        found = [next(values) for values in leaves]
        return _joined_leaf([index for index, _ in parts], found, n)

    return _rebuilt(parts[0][1], of_leaf)


def _leaves(value: Any) -> Iterator[Leaf]:
    if isinstance(value, (Tensor, PackedSequence)):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(part)
    elif _is_data(value):
        for name in _fields(value):
            yield from _leaves(getattr(value, name))


def _is_data(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]


def _rebuilt(value: Any, of_leaf: Callable[[Any], Any]) -> Any:
    """The same structure with other leaves, in the order of :func:`_leaves`."""
    if isinstance(value, (Tensor, PackedSequence)):
        return of_leaf(value)
    if isinstance(value, Mapping):
        parts = {name: _rebuilt(part, of_leaf) for name, part in value.items()}
        try:
            return type(value)(parts)  # type: ignore[call-arg]
        except TypeError:  # no mapping that is made from another
            return parts
    if isinstance(value, (tuple, list)):
        found = [_rebuilt(part, of_leaf) for part in value]
        return value._make(found) if hasattr(value, "_make") else type(value)(found)
    if _is_data(value):
        twin = copy.copy(value)
        for name in _fields(value):  # frozen ones too, and without running their checks again
            object.__setattr__(twin, name, _rebuilt(getattr(value, name), of_leaf))
        return twin
    return value


def _length(leaf: Leaf) -> int | None:
    if isinstance(leaf, PackedSequence):
        return int(leaf.batch_sizes[0])
    return len(leaf) if leaf.ndim else None


def _chosen(leaf: Leaf, index: Tensor) -> Leaf:
    if isinstance(leaf, Tensor):
        return leaf[index.to(leaf.device)]
    padded, lengths = pad_packed_sequence(leaf, batch_first=True)
    return pack_padded_sequence(
        padded[index.to(padded.device)], lengths[index.cpu()],
        batch_first=True, enforce_sorted=False,
    )  # fmt: skip


def _joined_leaf(indices: Sequence[Tensor], leaves: Sequence[Leaf], n: int) -> Leaf:
    first, tensors = leaves[0], [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if isinstance(first, PackedSequence):
        return first
    expected = [(len(index), *first.shape[1:]) for index in indices]
    if [leaf.shape for leaf in tensors] != expected:
        return first
    whole = first.new_empty((n, *first.shape[1:]))
    for index, leaf in zip(indices, tensors, strict=True):
        whole[index.to(whole.device)] = leaf
    return whole
