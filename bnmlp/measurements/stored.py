"""What autograd stores."""

from collections.abc import Callable

import torch
from torch import Tensor


def stored_for_backward(forward: Callable[[], object]) -> list[Tensor]:
    """Tensors that autograd stores for the way back through a function.

    Args:
        forward: Called once.

    Returns:
        The tensors in the order in which they are stored; several may share their memory.
    """
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return found
