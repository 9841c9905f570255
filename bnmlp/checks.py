"""Checks of arguments that several modules share."""

from collections.abc import Collection, Iterable
from numbers import Integral

import torch
from torch import nn


def whole_number(name: str, value: object, least: int = 1) -> int:
    """A size or a seed as Python's integer, NumPy's integers included.

    Args:
        name: Of the argument, for the message.
        value: What was given.
        least: The smallest that is allowed.

    Returns:
        The integer.

    Raises:
        ValueError: If it is no integer, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        kind = "a positive integer" if least == 1 else f"an integer >= {least}"
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    return int(value)


def check_module(
    what: str, module: object, parts: Iterable[tuple[str, nn.Module]] | None = None
) -> None:
    """Refuse what is no module, or one that shows nothing of what it does.

    Args:
        what: The function that takes it, for the message.
        module: What was given.
        parts: Its parts by name, where these are known.

    Raises:
        TypeError: If it is no module.
        ValueError: If one of its parts is scripted, or its numbers cannot be changed.
    """
    if not isinstance(module, nn.Module):
        kind = module.__name__ if isinstance(module, type) else type(module).__name__
        hint = "a class; call it" if isinstance(module, type) else "no module"
        raise TypeError(f"{what}: expected a module, got {kind}, {hint}")
    for name, part in module.named_modules() if parts is None else parts:
        if isinstance(part, torch.jit.ScriptModule):
            where = f" ({name})" if name else ""
            raise ValueError(
                f"{what}: a scripted module shows none of its calls{where}; take its source"
            )
        own = [*part._parameters.items(), *part._buffers.items()]
        if found := next((key for key, value in own if value is not None and _is_fixed(value)), ""):
            raise ValueError(
                f"{what}: {name + '.' if name else ''}{found} was made under torch.inference_mode, "
                "so it can be neither written nor differentiated in; make the module outside of it"
            )


def _is_fixed(value: torch.Tensor) -> bool:
    if torch.is_inference_mode_enabled() or nn.parameter.is_lazy(value):
        return False
    return value.is_inference()


def check_lengths(replicas: int, **choices: object) -> None:
    """Refuse choices by replica, which are tuples, of another length."""
    for name, value in choices.items():
        if isinstance(value, tuple) and len(value) != replicas:
            raise ValueError(
                f"{name} has {len(value)} entries for {replicas} replicas; give one for each"
            )


def check_name(what: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is not known."""
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; use one of {', '.join(known)}")
