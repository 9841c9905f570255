"""Closed forms that the measured curves of the book are compared with."""

import math


def gap_decay_factor(width: int) -> float:
    """Factor by which the expected isometry gap shrinks in one layer, near isometry.

    :math:`d/(d+2)`, derived in :eq:`gap-decay`; this book's sharpening of Theorem 1 of
    arXiv 2310.02012.

    Args:
        width: :math:`d`, both width and batch size.

    Returns:
        The factor, between 1/3 and 1.

    Raises:
        ValueError: If ``width`` is below 1.
    """
    if width < 1:
        raise ValueError(f"gap_decay_factor: width must be at least 1, got {width}")
    return width / (width + 2)


def gaussian_explosion_rate(batch_size: int, *, center: bool = True) -> float:
    r"""Explosion rate of a linear, infinitely wide batch-normalised network, Gaussian weights.

    :math:`\frac12\ln\frac{n-1}{n-2}` without mean reduction; mean reduction costs one sample,
    :math:`\frac12\ln\frac{n-2}{n-3}` (Yang et al. 2019 for the centred case).

    Args:
        batch_size: :math:`n`, distinct samples in the batch.
        center: Whether batch normalisation subtracts the mean.

    Returns:
        Growth of the log gradient norm per layer towards the input, in nats.

    Raises:
        ValueError: If the batch is too small for the rate to be finite.
    """
    free = batch_size - 1 if center else batch_size
    if free < 3:
        raise ValueError(
            f"gaussian_explosion_rate: infinite for {batch_size} samples; "
            f"give at least {4 if center else 3}"
        )
    return 0.5 * math.log((free - 1) / (free - 2))
