"""Double precision on every device."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Numbers = TypeVar("Numbers", bound=Tensor | nn.Module)


def float64(x: Numbers, device: torch.device | None = None) -> Numbers:
    """Numbers in float64 where they are, or on the CPU if they lie on MPS, which has no float64.

    Args:
        x: A tensor, or a module, which is converted in place.
        device: Where they are; that of the tensor if omitted.

    Returns:
        The numbers; of a module, itself.
    """
    found: Any = x
    place = device or found.device
    return found.to("cpu").to(torch.float64) if place.type == "mps" else found.to(torch.float64)
