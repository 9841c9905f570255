"""What people wrap around a module."""

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

PARALLEL = (DataParallel, DistributedDataParallel)


def unwrapped(module: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """The module inside ``torch.compile`` and PyTorch's wrappers for several devices.

    Args:
        module: As it is used in training.

    Returns:
        The module as it was written, and the wrappers that were taken off, the outermost first.
    """
    off: list[nn.Module] = []
    while True:
        name = "module" if isinstance(module, PARALLEL) else "_orig_mod"
        inner = getattr(module, name, None)
        if not isinstance(inner, nn.Module):
            return module, off
        off.append(module)
        module = inner
