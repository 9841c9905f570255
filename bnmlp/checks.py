"""Checks of arguments that several modules share."""

from numbers import Integral


def whole_number(name: str, value: object, least: int = 1) -> int:
    """A size or a seed as Python's integer, NumPy's integers included.

    Args:
        name: Of the argument, for the message.
        value: What was given.
        least: The smallest that is allowed.

    Raises:
        ValueError: If it is no integer, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        kind = "a positive integer" if least == 1 else f"an integer >= {least}"
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    return int(value)
