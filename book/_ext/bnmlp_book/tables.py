"""Tables in MyST."""

from collections.abc import Sequence


def list_table(style: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of class ``style`` from its column heads and its rows."""
    lines = ["```{list-table}", ":header-rows: 1", f":class: {style}", ""]
    for first, *rest in [heads, *rows]:
        lines += [f"* - {first}", *(f"  - {cell}" for cell in rest)]
    return "\n".join([*lines, "```"])
