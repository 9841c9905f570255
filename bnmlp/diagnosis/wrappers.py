"""What people wrap around a module, taken off, and gradients of data-parallel processes."""

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from bnmlp.checks import check_module
from bnmlp.diagnosis.anatomy import Anatomy, anatomy_of
from bnmlp.networks.protocol import One
from bnmlp.networks.wrappers import unwrapped

SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DTensor")


def dissected(model: nn.Module, what: str = "measure") -> tuple[Anatomy, list[str], bool]:
    """The module that people mean, without compilation and data parallelism.

    Args:
        model: As it is used in training.
        what: The function that takes it, for messages.

    Returns:
        The module's anatomy, what was taken off in words, and whether gradients are to be averaged
        over processes.

    Raises:
        TypeError: If it is no module.
        ValueError: If it cannot be measured as it is: sharded, scripted or without its parameters.
    """
    check_module(what, model, ())
    model, off = unwrapped(model)
    notes = [_words(wrapper) for wrapper in off]
    distributed = any(isinstance(wrapper, DistributedDataParallel) for wrapper in off)
    anatomy = anatomy_of(model.module if isinstance(model, One) else model)
    _refuse(anatomy, what)
    if any(part._compiled_call_impl for _, part in anatomy.parts):
        notes.append("compiled in place; measured as written, without compilation")
    return anatomy, notes, distributed


def _words(wrapper: nn.Module) -> str:
    if isinstance(wrapper, DistributedDataParallel):
        return (
            "DistributedDataParallel taken off: gradients are averaged over "
            f"{dist.get_world_size()} processes, activations are those of this process"
        )
    if isinstance(wrapper, DataParallel):
        return "DataParallel taken off; measured on one device"
    return "compiled by torch.compile; measured as written, without compilation"


def _refuse(anatomy: Anatomy, what: str) -> None:
    classes = {type(part) for _, part in anatomy.parts}
    kinds = {base.__name__ for kind in classes for base in kind.__mro__}
    kinds |= {kind.__name__ for kind in {type(p) for p in anatomy.parameters.values()}}
    if found := next((kind for kind in SHARDED if kind in kinds), None):
        raise ValueError(
            f"{what}: parameters are sharded ({found}), so no process has a whole gradient; "
            "measure the module before it is sharded, or a copy that has loaded its full state"
        )
    check_module(what, anatomy.module, anatomy.parts)
    if any(nn.parameter.is_lazy(p) for p in anatomy.parameters.values()):
        raise ValueError(f"{what}: lazy modules have no parameters yet; run the network once first")
    if any(p.is_meta for p in anatomy.parameters.values()):
        raise ValueError(f"{what}: parameters on the device 'meta' hold no numbers")


def averaged_over_processes(
    gradients: Mapping[str, Tensor | None], scale: float
) -> dict[str, Tensor | None]:
    """What DistributedDataParallel leaves in ``.grad``: the mean over processes.

    All processes of the default group must call this with gradients of the same names.

    Args:
        gradients: Of this process, times ``scale``.
        scale: A power of two, which may differ between processes.

    Returns:
        Their means, times this process's scale.
    """
    found: dict[str, Tensor | None] = {}
    for name, gradient in gradients.items():
        if gradient is not None:
            gradient = gradient / scale
            dist.all_reduce(gradient)
            gradient *= scale / dist.get_world_size()
        found[name] = gradient
    return found
