"""What measurements and training ask of any network."""

import torch
from torch import Tensor, nn

from bnmlp.machine.modes import autocast_devices
from bnmlp.networks.mlp import BNMLP


def labels_like(output_weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Check class labels against samples and model.

    Args:
        output_weight: Shape ``(R, out, width)``.
        x: Samples. Shape ``(..., n, features)``.
        y: Labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        Labels of every replica, int64. Shape ``(R, n)``.

    Raises:
        ValueError: If shape, type, device or range do not fit.
    """
    replicas, classes = output_weight.shape[:2]
    return class_labels(y, replicas, x.shape[-2], classes, x.device)


def class_labels(y: Tensor, replicas: int, n: int, classes: int, device: torch.device) -> Tensor:
    """Check class labels against what they are to fit.

    Args:
        y: Labels. Shape ``(n,)`` or ``(R, n)``.
        replicas: R.
        n: Number of samples.
        classes: Number of logits.
        device: Where the samples are.

    Returns:
        Labels of every replica, int64. Shape ``(R, n)``.

    Raises:
        ValueError: If shape, type, device or range do not fit.
    """
    if y.shape not in ((n,), (replicas, n)):
        raise ValueError(
            f"expected labels of shape ({n},) or ({replicas}, {n}), got {tuple(y.shape)}"
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {y.dtype}; call y.long()")
    if y.device != device:
        raise ValueError(f"labels are on {y.device}, samples on {device}; move one of them")
    low, high = torch.stack(torch.aminmax(y)).tolist()
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must lie in 0..{classes - 1}, got {low}..{high}; "
            "out_features of the model is the number of classes"
        )
    return y.long().expand(replicas, n)


class Logits(nn.Module):
    """One network as an ordinary module, whose averages and other buffers stay as they are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        refuse_several(model)
        self.network = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, out)`` of samples ``(n, ...)``."""
        if autocast_devices():
            raise ValueError(
                "torch.autocast would round products of the Hessian to three digits; multiply "
                "outside, or inside torch.autocast(..., enabled=False)"
            )
        if isinstance(self.network, BNMLP):
            return self.network.logits(x)[0]
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        logits = torch.func.functional_call(self.network, buffers, (x,))
        if logits.ndim == 3 and len(logits) == 1:  # R = 1
            logits = logits[0]
        if logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(
                f"curvature is measured for logits of shape ({len(x)}, classes), got "
                f"{tuple(logits.shape)}; wrap the network in a module that returns these"
            )
        return logits


def refuse_several(model: nn.Module) -> None:
    """Refuse several networks where one is measured."""
    replicas = getattr(model, "replicas", 1)
    if replicas != 1:
        raise ValueError(
            f"curvature is measured one network at a time, got {replicas}; take one with "
            "bnmlp.networks.replicas.subset(model, [r]) from a BNMLP, build others with replicas=1"
        )
