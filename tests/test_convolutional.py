import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bnmlp import load_dataset
from bnmlp.data.batches import images
from bnmlp.networks.convolutional import ResNet, simple_cnn


@pytest.mark.parametrize(("blocks", "depth"), [(3, 20), (9, 56), (18, 110)])
@pytest.mark.parametrize("shortcuts", [True, False])
def test_resnets_of_the_paper_run_and_learn_at_small_size(blocks, depth, shortcuts):
    model = ResNet(blocks, 2, shortcuts=shortcuts)
    assert len(model.convolutions()) + 1 == depth
    x, y = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    F.cross_entropy(model(x), y).backward()
    assert all(c.weight.grad.isfinite().all() for c in model.convolutions())


def test_every_convolution_is_scale_invariant():
    model = ResNet(1, 4, in_channels=1).double()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-30
    x, y = torch.randn(16, 1, 8, 8, dtype=torch.float64), torch.randint(10, (16,))
    F.cross_entropy(model(x), y).backward()
    for c in model.convolutions():
        cosine = F.cosine_similarity(c.weight.flatten(), c.weight.grad.flatten(), dim=0)
        assert abs(cosine) < 1e-12
    assert (
        F.cosine_similarity(
            model.last.weight.flatten(), model.last.weight.grad.flatten(), dim=0
        ).abs()
        > 1e-6
    )


def test_a_block_of_zeros_leaves_its_input_with_a_shortcut_only():
    x = torch.rand(2, 1, 8, 8)
    for shortcuts in (True, False):
        model = ResNet(1, 4, in_channels=1, shortcuts=shortcuts)
        block = model.blocks[0]
        torch.nn.init.zeros_(block.two[0].weight)
        entering = model.first(x).relu()
        expected = entering if shortcuts else torch.zeros_like(entering)
        torch.testing.assert_close(block(entering), expected)


def test_the_plain_network_has_the_sizes_of_the_study():
    model = simple_cnn(32, in_channels=3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    channels = [m.out_channels for m in model if isinstance(m, torch.nn.Conv2d)]
    assert channels == [32, 32, 64, 64]
    assert [m.out_features for m in model if isinstance(m, torch.nn.Linear)] == [128, 10]


@pytest.mark.parametrize(("channels", "wider"), [(1, 1 / 32), (1, 0.01), (3, 3 / 32), (32, 1.0)])
def test_it_pools_after_every_second_convolution_whatever_its_channels(channels, wider):
    model = simple_cnn(8, in_channels=channels, wider=wider)
    assert model(torch.randn(2, channels, 8, 8)).shape == (2, 10)
    kinds = [type(m).__name__ for m in model if not isinstance(m, torch.nn.ReLU)]
    assert kinds == [*(["Conv2d", "Conv2d", "MaxPool2d"] * 2), "Flatten", "Linear", "Linear"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numpy_integers_and_half_precision_are_accepted(dtype):
    one, two, eight = (np.int64(n) for n in (1, 2, 8))
    torch.manual_seed(1)
    resnet = ResNet(one, two, in_channels=one, classes=two)
    cnn = simple_cnn(eight, in_channels=one, wider=np.float64(0.1), classes=two)
    x = images(torch.randn(5, 256), np.int32(1), two)
    for model in (resnet, cnn):
        expected = model(x)
        found = copy.deepcopy(model).to(dtype)(x.to(dtype))
        found.sum().backward()
        assert found.dtype == dtype
        eps = max(torch.finfo(dtype).eps, torch.finfo(x.dtype).eps)
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=20 * eps)


def test_rows_become_images():
    x = load_dataset("mnist5k").train_x[:3]
    assert images(x).shape == (3, 1, 28, 28)
    pooled = images(x, pooled=2)
    assert pooled.shape == (3, 1, 14, 14)
    assert pooled.mean() == pytest.approx(x.mean().item(), rel=1e-4)
    with pytest.raises(ValueError, match="not 1 square"):
        images(x[:, :780])
    with pytest.raises(ValueError, match="do not tile images of 28 x 28"):
        images(x, pooled=3)
    with pytest.raises(ValueError, match="at least 4 x 4"):
        simple_cnn(3)
    for call in (
        lambda: ResNet(0),
        lambda: images(x, 0),
        lambda: simple_cnn(8, classes=0),
        lambda: simple_cnn(8, wider=float("nan")),
    ):
        with pytest.raises(ValueError, match="at least 1"):
            call()
