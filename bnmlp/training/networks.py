"""The networks that a run can train besides the book's own: their fields, and how they are made."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from bnmlp.data.batches import images, patches
from bnmlp.layers.initialization import INITIALIZATIONS
from bnmlp.layers.seeds import seed_of
from bnmlp.networks import residual, transformer
from bnmlp.networks.convolutional import ResNet, simple_cnn
from bnmlp.networks.protocol import Network, One, Stacked, averages_kept
from bnmlp.networks.skip import VARIANTS, SkipMLP

if TYPE_CHECKING:  # the choices are known when the module runs
    Variant = str
    Norm = str
    Attention = str
    Scheme = str
    SampleNorm = str
    Activation = str
    Init = str
else:
    Variant = Literal[VARIANTS]
    Norm = Literal[transformer.NORMS]
    Attention = Literal[transformer.ATTENTIONS]
    Scheme = Literal[tuple(residual.SCHEMES)]
    SampleNorm = Literal[residual.NORMS]
    Activation = Literal[tuple(residual.FUNCTIONS)]
    Init = Literal[tuple(INITIALIZATIONS)]


def as_module(network: Network) -> nn.Module:
    """A network as the module that it is."""
    assert isinstance(network, nn.Module)
    return network


class Shape(BaseModel):
    """What a dataset asks of a network: features of a sample as a row, channels, classes."""

    features: int
    classes: int

    @property
    def channels(self) -> int:
        """Of the images that rows are."""
        return 3 if self.features % 3 == 0 else 1


class Options(BaseModel):
    """Fields of one kind of network, checked when they are written down."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    sample_ndim: ClassVar[int] = 1

    def view(self, x: Tensor, shape: Shape) -> Tensor:
        """Rows of a dataset as the samples that the network takes."""
        return x

    def networks(self, shape: Shape, replicas: int, seed: int, dtype: torch.dtype) -> Network:
        """R networks as they are before the first step, on the CPU."""
        raise NotImplementedError


class SkipMLPOptions(Options):
    """Of a :class:`bnmlp.networks.skip.SkipMLP`."""

    depth: int = Field(20, ge=2, description="linear layers, the last included")
    variant: Variant = Field("skip", description="what is between linear layers")
    width: int = Field(128, ge=1, description="features of each hidden layer")
    init_gain: float = Field(1.0, gt=0, description="factor on the weights of hidden layers")

    def networks(self, shape: Shape, replicas: int, seed: int, dtype: torch.dtype) -> Network:
        """See :class:`Options`."""
        return SkipMLP(
            **self.model_dump(), in_features=shape.features, out_features=shape.classes,
            replicas=replicas, seed=seed, dtype=dtype,
        )  # fmt: skip


class Images(Options):
    """Of networks for images."""

    sample_ndim: ClassVar[int] = 3
    pooled: int = Field(1, ge=1, description="average images over squares of so many pixels")

    def view(self, x: Tensor, shape: Shape) -> Tensor:
        """See :class:`Options`."""
        return images(x, shape.channels, self.pooled)

    def make(self, shape: Shape) -> nn.Module:
        """One network, weights from PyTorch's own random numbers."""
        raise NotImplementedError

    def networks(self, shape: Shape, replicas: int, seed: int, dtype: torch.dtype) -> Network:
        """See :class:`Options`."""
        made = seeded(lambda: self.make(shape), replicas, seed, dtype)
        return Stacked(made, self.sample_ndim)


class ResNetOptions(Images):
    """Of a :class:`bnmlp.networks.convolutional.ResNet`."""

    blocks: int = Field(3, ge=1, description="blocks in each of three stages")
    channels: int = Field(16, ge=1, description="of the first stage")
    shortcuts: bool = Field(True, description="add a block's input to its output")

    def make(self, shape: Shape) -> nn.Module:
        """See :class:`Images`."""
        return ResNet(
            self.blocks, self.channels, shortcuts=self.shortcuts, in_channels=shape.channels,
            classes=shape.classes,
        )  # fmt: skip


class SimpleCNNOptions(Images):
    """Of a :func:`bnmlp.networks.convolutional.simple_cnn`."""

    wider: float = Field(1.0, gt=0, description="factor on channels and features")

    def make(self, shape: Shape) -> nn.Module:
        """See :class:`Images`."""
        side = round((shape.features / shape.channels) ** 0.5) // self.pooled
        return simple_cnn(side, in_channels=shape.channels, wider=self.wider, classes=shape.classes)


class ResidualMLPOptions(Options):
    """Of a :class:`bnmlp.networks.residual.ResidualMLP`."""

    depth: int = Field(16, ge=1, description="blocks")
    scheme: Scheme = Field("pre", description="how blocks are added")
    matrices: int = Field(2, ge=1, description="of a block")
    norm: SampleNorm = Field("layer", description="of samples")
    activation: Activation = Field("relu", description="inside blocks")
    exponent: float = Field(0.0, description="blocks are divided by so high a power of the depth")
    width: int = Field(64, ge=1, description="features of the stream and inside blocks")
    streams: int = Field(4, ge=1, description="of hyper-connections")
    mixing: float = Field(0.0, ge=0, description="of these streams at first")
    init: Init = Field("gaussian", description="initial weights")

    def networks(self, shape: Shape, replicas: int, seed: int, dtype: torch.dtype) -> Network:
        """See :class:`Options`."""
        return residual.ResidualMLP(
            **self.model_dump(), in_features=shape.features, out_features=shape.classes,
            replicas=replicas, seed=seed, dtype=dtype,
        )  # fmt: skip


class TransformerOptions(Options):
    """Of a :class:`bnmlp.networks.transformer.Transformer`, whose tokens are patches of images."""

    sample_ndim: ClassVar[int] = 2
    depth: int = Field(6, ge=1, description="blocks")
    width: int = Field(32, ge=1, description="length of a token inside")
    heads: int = Field(4, ge=1, description="of every attention")
    hidden: int | None = Field(
        None, ge=1, description="features of a perceptron, 2 width if omitted"
    )
    norm: Norm = Field("after", description="where normalisations are")
    skip: bool = Field(True, description="skip connections")
    attention: Attention = Field("softmax", description="kind of attention")
    causal: bool = Field(False, description="a token sees those before it only")
    side: int = Field(7, ge=1, description="pixels along a patch")

    def view(self, x: Tensor, shape: Shape) -> Tensor:
        """See :class:`Options`."""
        return patches(x, self.side)

    def networks(self, shape: Shape, replicas: int, seed: int, dtype: torch.dtype) -> Network:
        """See :class:`Options`."""
        tokens, features = self.view(torch.empty(1, shape.features, device="meta"), shape).shape[1:]
        return transformer.Transformer(
            features, out_features=shape.classes, tokens=tokens, replicas=replicas, seed=seed,
            dtype=dtype, **self.model_dump(exclude={"side"}),
        )  # fmt: skip


NETWORKS: dict[str, type[Options]] = {
    "skip_mlp": SkipMLPOptions,
    "resnet": ResNetOptions,
    "simple_cnn": SimpleCNNOptions,
    "transformer": TransformerOptions,
    "residual_mlp": ResidualMLPOptions,
}


class Own(BaseModel):
    """A network of the reader's own: what to call, and with which arguments.

    ``factory`` is ``"package.module:function"`` or ``"path/to/file.py:function"``; the function
    returns a module that maps samples to logits ``(n, classes)``.
    """

    factory: str
    arguments: dict[str, Any] = {}
    input: Literal["rows", "images"] = "rows"

    def view(self, x: Tensor, shape: Shape) -> Tensor:
        """See :class:`Options`."""
        return images(x, shape.channels) if self.input == "images" else x

    def networks(self, shape: Shape, replicas: int, seed: int, dtype: torch.dtype) -> Network:
        """See :class:`Options`.

        Returns:
            The networks on the CPU.

        Raises:
            ValueError: If there is no such function, or it raises or returns something else.
        """
        function = find(self.factory)
        try:
            made = seeded(lambda: function(**self.arguments), replicas, seed, dtype)
        except Exception as error:
            raise ValueError(f"{self.factory} failed: {type(error).__name__}: {error}") from error
        self._check(made[0], self.view(torch.zeros(2, shape.features, dtype=dtype), shape), shape)
        sample_ndim = 3 if self.input == "images" else 1
        return Stacked(made, sample_ndim) if replicas > 1 else One(made[0], sample_ndim)

    def _check(self, module: nn.Module, x: Tensor, shape: Shape) -> None:
        """Refuse a module that makes no logits of two samples, or has nothing to train."""
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError(f"{self.factory} made a module without parameters to train")
        given = f"{self.input} of shape {tuple(x.shape)}"
        try:
            with averages_kept(module, False), torch.no_grad(), torch.random.fork_rng([]):
                logits = module(x)
        except Exception as error:
            other = "images" if self.input == "rows" else "rows"
            raise ValueError(
                f"{self.factory} made a module that fails with {given}: {type(error).__name__}: "
                f"{error}; if it takes {other}, say input {other}"
            ) from error
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != (len(x), shape.classes):
            raise ValueError(
                f"{self.factory} made a module that turns {given} into {found}, expected logits "
                f"of shape {(len(x), shape.classes)}"
            )


def find(factory: str) -> Callable[..., nn.Module]:
    """The function that ``"module:function"`` or ``"file.py:function"`` names.

    Args:
        factory: Such a text.

    Returns:
        The function.

    Raises:
        ValueError: If there is none, with the reason.
    """
    place, _, name = factory.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f"{factory!r} is not module:function or file.py:function")
    try:
        module = _file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        return getattr(module, name)
    except Exception as error:
        raise ValueError(f"cannot use {factory}: {type(error).__name__}: {error}") from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.resolve()}")
    name = f"bnmlp_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader, "a file whose name ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def seeded(
    make: Callable[[], nn.Module], replicas: int, seed: int, dtype: torch.dtype
) -> list[nn.Module]:
    """Modules made with PyTorch's global random numbers, which are left as they were.

    Args:
        make: Makes one.
        replicas: R; what number r draws depends on the seed and r alone.
        seed: Of the run.
        dtype: Of the parameters.

    Returns:
        R modules.

    Raises:
        TypeError: If something else is made.
    """
    made = []
    with torch.random.fork_rng(devices=[]):
        for r in range(replicas):
            torch.manual_seed(seed_of(seed, r))
            module = make()
            if not isinstance(module, nn.Module):
                raise TypeError(f"expected a module, got {type(module).__name__}")
            made.append(module.to(dtype))
    return made
