"""A function that only one chapter uses."""


def product():
    """The product that the other chapter shows."""
    return 6 * 7
