"""Checks of arguments that several modules share."""

from collections.abc import Collection
from numbers import Integral


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
