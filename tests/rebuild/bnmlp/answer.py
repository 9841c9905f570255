"""A result that the test edits."""


def answer():
    """Most of the answer."""
    return 41
