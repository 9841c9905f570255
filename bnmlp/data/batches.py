"""Batches: the order of samples, rows as images or tokens, inputs made on purpose."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from bnmlp.layers.seeds import random_order, random_source


def patches(
    x: Shaped[Tensor, "*batch pixels"], side: int = 7
) -> Shaped[Tensor, "*batch T {side*side}"]:
    """Square images as sequences of square patches.

    Args:
        x: Images as rows. Shape ``(..., pixels)``.
        side: Of a patch; divides that of the images.

    Returns:
        Shape ``(..., T, side * side)``.

    Raises:
        ValueError: If rows are not squares of whole patches.
    """
    if side < 1:
        raise ValueError(f"patches: their side must be at least 1, got {side}")
    across = round(x.shape[-1] ** 0.5) // side
    if (across * side) ** 2 != x.shape[-1]:
        raise ValueError(f"{x.shape[-1]} pixels are not a square of patches of {side} x {side}")
    grid = x.unflatten(-1, (across, side, across, side)).transpose(-3, -2)
    return grid.flatten(-4, -3).flatten(-2)


def images(
    x: Shaped[Tensor, "n features"], channels: int = 1, pooled: int = 1
) -> Shaped[Tensor, "n {channels} side side"]:
    """Rows of a data set as square images, optionally averaged over small squares.

    Args:
        x: Shape ``(n, channels * side * side)``.
        channels: Of the images.
        pooled: Side of the squares to average over; divides that of the images.

    Returns:
        Shape ``(n, channels, side / pooled, side / pooled)``.

    Raises:
        ValueError: If rows are not square images, or the small squares do not tile them.
    """
    if channels < 1:
        raise ValueError(f"images: channels must be at least 1, got {channels}")
    side = round((x.shape[-1] / channels) ** 0.5)
    if channels * side * side != x.shape[-1]:
        raise ValueError(f"{x.shape[-1]} features are not {channels} square images")
    if pooled < 1 or side % pooled:
        raise ValueError(f"squares of {pooled} x {pooled} do not tile images of {side} x {side}")
    x = x.unflatten(-1, (channels, side, side))
    return x if pooled == 1 else F.avg_pool2d(x, pooled)


def degenerate_batch(
    x: Shaped[Tensor, "*batch n features"], y: Shaped[Tensor, "*batch n"], distinct: int
) -> tuple[Shaped[Tensor, "*batch n features"], Shaped[Tensor, "*batch n"]]:
    """Repeat the first samples of a batch until it has its old size.

    Args:
        x: Samples. Shape ``(..., n, features)``.
        y: Labels. Shape ``(..., n)``.
        distinct: Number of samples to keep; row i of the result is sample i modulo this.

    Returns:
        Samples and labels, of rank at most ``distinct``. Shapes as given.

    Raises:
        ValueError: If ``distinct`` is not between 1 and n, or shapes do not fit.

    Examples:
        >>> x, y = degenerate_batch(torch.eye(5), torch.arange(5), distinct=2)
        >>> y.tolist()
        [0, 1, 0, 1, 0]
        >>> torch.linalg.matrix_rank(x).item()
        2
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
) -> Float64[Tensor, "n n"]:
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

    Examples:
        >>> torch.equal(perturbed_identity(3, strength=0), torch.eye(3, dtype=torch.float64))
        True
        >>> torch.linalg.matrix_rank(perturbed_identity(9, strength=1)).item()  # the noise alone
        1
    """
    if n < 1:
        raise ValueError(f"perturbed_identity: n must be at least 1, got {n}")
    if not 0 <= strength <= 1:
        raise ValueError(f"perturbed_identity: strength must lie in [0, 1], got {strength}")
    generator = random_source(seed)
    uniform = partial(torch.rand, generator=generator, dtype=torch.float64, device="cpu")
    if noise == "rank_one":
        u, v = uniform(2, n)
        perturbation = torch.outer(u, v)
    elif noise == "full":
        perturbation = uniform(n, n)
    else:
        raise ValueError(f"perturbed_identity: noise is 'rank_one' or 'full', got {noise!r}")
    identity = torch.eye(n, dtype=torch.float64, device="cpu")
    return (1 - strength) * identity + strength * perturbation


def epoch_orders(
    seed: int, replicas: int, epoch: int, samples: int
) -> Int64[Tensor, "{replicas} {samples}"]:
    """The order in which each network sees the training samples in one epoch.

    Args:
        seed: Seed of the run.
        replicas: Number of networks; the order of one does not depend on it.
        epoch: From 0.
        samples: Size of the training set.

    Returns:
        A permutation for each network, int64. Shape ``(R, samples)``.
    """
    orders = []
    for r in range(replicas):
        orders.append(random_order(samples, seed, r, epoch, 1))
    return torch.stack(orders)


def epoch_batches(
    x: Tensor, y: Tensor, size: int, replicas: int, steps: int, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches as runs see them, epoch after epoch, for each network in an order of its own.

    Args:
        x: Training samples. Shape ``(N, ...)``.
        y: Labels. Shape ``(N,)``.
        size: Of a batch; what is left over at the end of an epoch is skipped.
        replicas: R.
        steps: Number of batches.
        seed: Of the run.

    Yields:
        Samples and labels. Shapes ``(R, size, ...)`` and ``(R, size)``.
    """
    each = len(x) // size
    for t in range(steps):
        if t % each == 0:
            orders = epoch_orders(seed, replicas, t // each, len(x)).split(size, 1)
        yield x[orders[t % each]], y[orders[t % each]]


def drawn_batches(
    x: Tensor, y: Tensor, size: int, replicas: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Samples drawn with replacement, for each network its own.

    Args:
        x: Samples. Shape ``(N, ...)``.
        y: Labels. Shape ``(N,)``.
        size: Of a batch; of N, all samples are the batch of every network, and nothing is drawn.
        replicas: R.
        steps: Number of batches.
        generator: Draws.

    Yields:
        Samples and labels. Shapes ``(R, size, ...)`` and ``(R, size)``, or those of all samples.
    """
    for _ in range(steps):
        if size == len(x):
            yield x, y
        else:
            index = torch.randint(len(x), (replicas, size), generator=generator)
            yield x[index], y[index]


def shuffled_batches(
    x: Tensor, y: Tensor, size: int, steps: int, generators: Sequence[torch.Generator]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Distinct samples at each step, those of all steps independent.

    Args:
        x: Samples. Shape ``(N, ...)``.
        y: Labels. Shape ``(N,)``.
        size: Of a batch.
        steps: Number of batches.
        generators: One for each network, R.

    Yields:
        Samples and labels. Shapes ``(R, size, ...)`` and ``(R, size)``.
    """
    for _ in range(steps):
        index = torch.stack([torch.randperm(len(x), generator=g)[:size] for g in generators])
        index = index.to(x.device)
        yield x[index], y[index]
