"""Tables in MyST."""

from collections.abc import Sequence


def list_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table from its column heads and its rows."""
    lines = ["```{list-table}", ":header-rows: 1", ""]
    for first, *rest in [heads, *rows]:
        lines += [f"* - {first}", *(f"  - {cell}" for cell in rest)]
    return "\n".join([*lines, "```"])
