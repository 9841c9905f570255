"""The parts of a module, found once: walking its tree a dozen times is slower than running it."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Anatomy:
    """Parts and parameters of a module by their names, in PyTorch's order.

    Attributes:
        module: The module.
        parts: Path and module, the module itself first with an empty path, each once.
        parameters: By name, each once.
    """

    module: nn.Module
    parts: list[tuple[str, nn.Module]]
    parameters: dict[str, nn.Parameter]


def anatomy_of(module: nn.Module) -> Anatomy:
    """Walk through a module.

    Args:
        module: Any module.

    Returns:
        Its parts and parameters.
    """
    parts = list(module.named_modules())
    parameters: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for path, part in parts:
        for name, p in part._parameters.items():
            if p is not None and id(p) not in seen:
                seen.add(id(p))
                parameters[f"{path}.{name}" if path else name] = p
    return Anatomy(module, parts, parameters)
