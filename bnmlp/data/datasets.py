"""Real datasets as standardised matrices, and the special batches that experiments need."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnmlp.data.sources import LOADERS, STANDARDIZATION
from bnmlp.layers.seeds import random_order


@dataclass(frozen=True)
class Dataset:
    """A labelled dataset, split and standardised.

    Attributes:
        name: Name given to :func:`load_dataset`.
        source: Where the data came from.
        train_x: Training samples, standardised, float32. Shape ``(N, features)``.
        train_y: Training labels, int64. Shape ``(N,)``.
        test_x: Test samples. Shape ``(M, features)``.
        test_y: Test labels. Shape ``(M,)``.
        checksum: SHA-256 of the pixels and labels before standardisation.
        mean: Mean that was subtracted from pixels in [0, 1], per channel.
        std: Standard deviation that they were divided by, per channel.
    """

    name: str
    source: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    checksum: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, x: Tensor) -> Tensor:
        """Samples as pixels from 0 to 1, before they were standardised.

        Args:
            x: Shape ``(..., features)``.

        Returns:
            Of the same shape and type.
        """
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in (self.mean, self.std))
        channels = x.unflatten(-1, (len(mean), -1))
        return (channels * std[:, None] + mean[:, None]).flatten(-2)

    def batch(self, size: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """A random batch of distinct training samples.

        Args:
            size: Number of samples.
            seed: Batches of different seeds are independent.

        Returns:
            Samples and labels. Shapes ``(size, features)`` and ``(size,)``.

        Raises:
            ValueError: If the training set is smaller than ``size``.
        """
        if not 1 <= size <= len(self.train_x):
            raise ValueError(
                f"batch: {self.name} has {len(self.train_x)} training samples, asked for {size}"
            )
        chosen = random_order(len(self.train_x), seed)[:size]
        return self.train_x[chosen], self.train_y[chosen]

    def batches(
        self,
        size: int,
        runs: int,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One random batch for each of several networks: :meth:`batch` of consecutive seeds.

        Args:
            size: Samples in each batch.
            runs: Number of batches.
            seed: Seed of the first batch.
            dtype: Type of the samples.
            device: Where the result lives.

        Returns:
            Samples and labels. Shapes ``(runs, size, features)`` and ``(runs, size)``.

        Raises:
            ValueError: If the training set is smaller than ``size``, or ``runs`` is not positive.
        """
        if runs < 1:
            raise ValueError(f"batches: runs must be at least 1, got {runs}")
        x, y = zip(*(self.batch(size, seed=seed + r) for r in range(runs)), strict=True)
        return torch.stack(x).to(device, dtype), torch.stack(y).to(device)

    def fresh_batches(
        self,
        size: int,
        runs: int,
        steps: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """New :meth:`batches` for every step of a training, no two with the same seed.

        Args:
            size: Samples in each batch.
            runs: Number of networks.
            steps: How often.
            dtype: Type of the samples.
            device: Where they live.

        Yields:
            Samples and labels. Shapes ``(runs, size, features)`` and ``(runs, size)``.
        """
        for step in range(steps):
            yield self.batches(size, runs, seed=runs * step, dtype=dtype, device=device)


def load_dataset(
    name: str, root: str | os.PathLike[str] | None = None, download: bool = False
) -> Dataset:
    """Load a dataset; nothing is fetched unless asked.

    ``mnist5k``, ``digits`` and ``photo_patches`` come with installed packages and need no folder.
    ``fashion_mnist`` is also found where Debian's package ``dataset-fashion-mnist`` puts it.

    Args:
        name: ``mnist5k`` (5,000 MNIST digits: 4,000 and 1,000), ``digits`` (8 by 8 digits of
            scikit-learn), ``photo_patches`` (32 by 32 colour patches of scikit-learn's two
            photographs; the label is the photograph), ``mnist``, ``fashion_mnist``, ``cifar10``
            or ``cifar100``.
        root: Folder of the datasets; ``BNMLP_DATA`` or ``~/.cache/bnmlp`` if omitted.
        download: Fetch into ``root`` those files of the dataset that are missing or damaged, from
            the addresses that torchvision knows.

    Returns:
        The dataset.

    Raises:
        ValueError: If the name is unknown, or a file is truncated or altered; the file is named.
        FileNotFoundError: If the dataset is missing; the remedies are named.
        OSError: If it cannot be downloaded or stored; files that came are kept.

    Examples:
        >>> data = load_dataset("digits")
        >>> tuple(data.train_x.shape), tuple(data.test_x.shape)
        ((1442, 64), (355, 64))
        >>> data.train_y.unique().tolist() == list(range(10))
        True
        >>> abs(data.train_x.mean().item()) < 1e-5  # standardised
        True
    """
    if name not in LOADERS:
        raise ValueError(f"unknown dataset {name!r}; use one of {', '.join(LOADERS)}")
    source, train, train_y, test, test_y = LOADERS[name](name, root, download)
    digest = hashlib.sha256()
    for array in (train, train_y, test, test_y):
        digest.update(np.ascontiguousarray(array, np.uint8).data)
    mean, std = STANDARDIZATION.get(name) or _channel_statistics(train)
    return Dataset(
        name=name,
        source=source,
        train_x=_standardized(train, mean, std),
        train_y=torch.from_numpy(train_y.astype(np.int64)),
        test_x=_standardized(test, mean, std),
        test_y=torch.from_numpy(test_y.astype(np.int64)),
        checksum=digest.hexdigest(),
        mean=mean,
        std=std,
    )


def available_datasets(*names: str, root: str | os.PathLike[str] | None = None) -> list[Dataset]:
    """Those datasets that load here without a download.

    Args:
        *names: Names as in :func:`load_dataset`; all if omitted.
        root: Folder of the datasets, as in :func:`load_dataset`.

    Returns:
        The datasets, in the order of the names.

    Raises:
        ValueError: If a name is unknown or a dataset is damaged.
    """
    found = []
    for name in names or LOADERS:
        with contextlib.suppress(FileNotFoundError):
            found.append(load_dataset(name, root))
    return found


def _channel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scaled = pixels / 255
    return tuple(scaled.mean((0, 2)).tolist()), tuple(scaled.std((0, 2)).tolist())


def _standardized(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    x = torch.from_numpy(pixels.astype(np.float32)) / 255
    shift, size = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None] for v in (mean, std))
    x = (x - shift) / size
    return x.flatten(1)
