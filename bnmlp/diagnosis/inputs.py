"""Batches for networks that are measured from the command line."""

from pathlib import Path

import torch
from torch import Tensor

from bnmlp.data.batches import images as as_images
from bnmlp.data.datasets import load_dataset
from bnmlp.layers.seeds import random_source


def random_batch(
    shape: str, *, integers: int | None = None, classes: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor | None, str]:
    """Random inputs and labels.

    Args:
        shape: As ``"32x3x224x224"``, samples first.
        integers: Inputs are integers below this number; normal numbers if omitted.
        classes: Labels are classes; no labels if omitted.
        seed: Of all.

    Returns:
        Inputs, labels or None, and what they are.

    Raises:
        ValueError: If the shape is none.
    """
    try:
        sizes = [int(part) for part in shape.lower().split("x")]
        if min(sizes) < 1:
            raise ValueError(shape)
    except ValueError:
        raise ValueError(f"--input: expected sizes as 32x3x224x224, got {shape!r}") from None
    source = random_source(seed, 1)
    if integers is None:
        x, kind = torch.randn(sizes, generator=source), "independent normal numbers"
    else:
        x = torch.randint(integers, sizes, generator=source)
        kind = f"random integers below {integers}"
    words = f"inputs are {kind}, no data: rates of the network, not of a task"
    if classes is None:
        return x, None, words
    return x, torch.randint(classes, sizes[:1], generator=source), f"{words}; labels are random"


def dataset_batch(
    name: str, size: int, *, images: bool = False, root: Path | None = None
) -> tuple[Tensor, Tensor, str]:
    """The first training samples of a dataset.

    Args:
        name: Of the dataset.
        size: How many samples.
        images: Whether they are images ``(n, channels, height, width)``, or rows.
        root: Folder of the datasets.

    Returns:
        Samples, labels, and what they are.
    """
    found = load_dataset(name, root)
    x, y = found.batch(size)
    if images:
        x = as_images(x, 3 if x.shape[1] % 3 == 0 else 1)
    return x, y, f"{size} training samples of {found.name}"
