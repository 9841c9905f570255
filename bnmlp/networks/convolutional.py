"""Small convolutional networks: the ResNet of CIFAR with and without shortcuts, and a plain one."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class ResNet(nn.Module):
    """ResNet v1 for small images, normalisation right after each convolution.

    A first convolution, three stages of blocks of two convolutions with one, two and four times the
    channels, the later two at half the resolution, global average pooling and a linear map. Depth
    is 6 blocks + 2: 56 layers for nine blocks in a stage, 110 for eighteen. Without bias and
    without affine part of the normalisation every convolution is scale-invariant
    :cite:p:`he2016deep`.

    Args:
        blocks: Blocks in each stage.
        channels: Of the first stage.
        shortcuts: Add a block's input to its output (zeros for new channels), or do not.
        in_channels: Of the images.
        classes: Number of logits.

    Raises:
        ValueError: If a size is below one.
    """

    def __init__(
        self,
        blocks: int,
        channels: int = 16,
        *,
        shortcuts: bool = True,
        in_channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if min(blocks, channels, in_channels, classes) < 1:
            raise ValueError("ResNet: blocks, channels, in_channels and classes must be at least 1")
        self.first = _normalized_convolution(in_channels, channels)
        widths = [channels] * blocks + [2 * channels] * blocks + [4 * channels] * blocks
        before = [channels, *widths[:-1]]
        self.blocks = nn.ModuleList(
            _Block(m, n, shortcuts) for m, n in zip(before, widths, strict=True)
        )
        self.last = nn.Linear(4 * channels, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(n, classes)`` from images of shape ``(n, channels, h, w)``."""
        x = self.first(x).relu()
        for block in self.blocks:
            x = block(x)
        return self.last(x.mean((-2, -1)))

    def convolutions(self) -> list[nn.Conv2d]:
        """All convolutions, from the input to the output."""
        return [m for m in self.modules() if isinstance(m, nn.Conv2d)]


class _Block(nn.Module):
    def __init__(self, before: int, channels: int, shortcut: bool) -> None:
        super().__init__()
        stride = 1 if before == channels else 2
        self.one = _normalized_convolution(before, channels, stride)
        self.two = _normalized_convolution(channels, channels)
        self.shortcut, self.stride, self.added = shortcut, stride, channels - before

    def forward(self, x: Tensor) -> Tensor:
        out = self.two(self.one(x).relu())
        if self.shortcut:
            out = out + F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return out.relu()


def _normalized_convolution(before: int, channels: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(channels, affine=False))


def simple_cnn(
    side: int, *, in_channels: int = 1, wider: float = 1.0, classes: int = 10
) -> nn.Sequential:
    """Four 3x3 convolutions, pooling after every second, and two linear maps, without norms.

    The network of the study :cite:p:`zmyslowski2020nqm`: 32, 32, 64 and 64 channels, 128 features.

    Args:
        side: Of the square images.
        in_channels: Of the images.
        wider: Factor on channels and features.
        classes: Number of logits.

    Returns:
        The network, from images ``(n, channels, side, side)`` to logits ``(n, classes)``.

    Raises:
        ValueError: If images are too small to be halved twice, or another size is below one.
    """
    if min(in_channels, classes) < 1 or not 0 < wider < math.inf:
        raise ValueError(
            "simple_cnn: in_channels and classes must be at least 1 and wider positive, got "
            f"{in_channels}, {classes} and {wider}"
        )
    if side < 4:
        raise ValueError(f"simple_cnn: images need at least 4 x 4 pixels, got {side} x {side}")
    a, b, features = (max(1, round(wider * n)) for n in (32, 64, 128))
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(((in_channels, a), (a, a), (a, b), (b, b))):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        if i % 2:
            layers.append(nn.MaxPool2d(2))
    flat = b * (side // 4) ** 2
    head = (nn.Flatten(), nn.Linear(flat, features), nn.ReLU(), nn.Linear(features, classes))
    return nn.Sequential(*layers, *head)
