"""Gaussian averages of activations: what wide networks do on average."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bnmlp.layers.activations import ACTIVATIONS, gain_schedule
from bnmlp.theory.gaussian import (
    Activation,
    derivative,
    elementwise,
    gaussian_mean,
    gaussian_product,
)

SHORT = 1e-60  # a mean square that float64 does not tell from zero, with both signs of its root
RELATIVE = 4 * math.ulp(1.0)  # SciPy's own
NEAR_CRITICAL = 1e-5  # 1 - c*, below which its expansion is closer than quadrature


def _root(
    function: Callable[[float], float],
    low: float,
    high: float,
    xtol: float = 1e-14,
    rtol: float = 1e-14,
) -> float:
    """Where a function changes its sign."""
    from scipy.optimize import brentq  # what does not look for roots needs no SciPy

    return float(brentq(function, low, high, xtol=xtol, rtol=rtol))


def gradient_growth(activation: str, gain: float = 1.0, *, norm: str = "batch") -> float:
    r"""Mean-field growth of the log gradient norm in one normalised layer with an activation.

    :math:`\frac12\log\frac{\alpha^2\,\E\sigma'(\alpha z)^2}{\operatorname{Var}\sigma(\alpha z)}`,
    from :eq:`gradient-growth-variance`, for large batches; with layer normalisation
    :math:`\E\sigma^2` takes the place of the variance. Zero for the identity; with batch
    normalisation positive for anything else. Says nothing about batch normalisation without mean
    reduction, except for odd activations, which have no mean: for others samples align and rows are
    no longer Gaussian.

    Args:
        activation: Name in ``bnmlp.ACTIVATIONS``.
        gain: :math:`\alpha`.
        norm: ``"batch"``, with mean reduction, or ``"layer"``.

    Returns:
        Growth towards the input in nats per layer.

    Raises:
        ValueError: If activation or normalisation is unknown or the gain is not positive.
    """
    if norm not in ("batch", "layer"):
        raise ValueError(f"gradient_growth: norm is 'batch' or 'layer', got {norm!r}")
    if not (gain > 0 and math.isfinite(gain)):
        raise ValueError(f"gradient_growth: gain must be finite and > 0, got {gain}")
    sigma = elementwise(activation)
    energy = gaussian_mean(lambda x: sigma(x).square(), gain**2)
    if norm == "batch":
        energy -= gaussian_mean(sigma, gain**2) ** 2
    change = chi(sigma, gain**2, gain**2)
    return 0.5 * math.log(change / energy)


def length_map(
    activation: Activation, q: float, weight_variance: float, bias_variance: float = 0.0
) -> float:
    r"""Mean squared pre-activation of the next layer of a wide network without normalisation.

    :math:`\sigma_w^2\,\E\varphi(\sqrt q\,z)^2 + \sigma_b^2` for weights of variance
    :math:`\sigma_w^2/d` and biases of variance :math:`\sigma_b^2`
    :cite:p:`poole2016exponential`.

    Args:
        activation: :math:`\varphi`, a name in ``bnmlp.ACTIVATIONS`` or an elementwise function.
        q: Mean squared pre-activation of this layer.
        weight_variance: :math:`\sigma_w^2`.
        bias_variance: :math:`\sigma_b^2`.

    Returns:
        The next :math:`q`.

    Raises:
        ValueError: If the activation is unknown or a variance is negative or not finite.
    """
    check_variances(weight_variance, bias_variance)
    phi = elementwise(activation)
    return weight_variance * gaussian_mean(lambda x: phi(x).square(), q) + bias_variance


def fixed_length(
    activation: Activation, weight_variance: float, bias_variance: float = 0.0
) -> float:
    r"""Stable fixed point :math:`q^*` of :func:`length_map`, to a relative :math:`10^{-12}`.

    For activations whose length map is concave, as of tanh or ReLU: such a map has at most one
    fixed point besides zero, and it is stable.

    Args:
        activation: As in :func:`length_map`.
        weight_variance: :math:`\sigma_w^2`.
        bias_variance: :math:`\sigma_b^2`.

    Returns:
        Mean squared pre-activation in deep layers.

    Raises:
        ValueError: If lengths grow without bound or beyond 1e8, or an argument is refused by
            :func:`length_map`.
    """
    check_variances(weight_variance, bias_variance)

    def excess(log_q: float) -> float:
        q = math.exp(log_q)
        return length_map(activation, q, weight_variance, bias_variance) / q - 1

    low, high = math.log(min(1e-14, bias_variance / 2) or 1e-14), math.log(1e8)
    if bias_variance == 0 and excess(low) <= 0:
        return 0.0
    if excess(high) >= 0:
        raise ValueError(
            "fixed_length: lengths grow without bound or beyond 1e8 at variances "
            f"{weight_variance} of weights and {bias_variance} of biases; use smaller ones or an "
            "activation that saturates"
        )
    return math.exp(_root(excess, low, high))


def chi(activation: Activation, q: float, weight_variance: float, order: int = 1) -> float:
    r""":math:`\chi_k = \sigma_w^2\,\E\varphi^{(k)}(\sqrt q\,z)^2`.

    :math:`\chi_1` is the growth of squared gradients, and of small squared distances, in one
    layer; :math:`\chi_2` drives the curvature :cite:p:`poole2016exponential`.

    Args:
        activation: As in :func:`length_map`. The mean does not see the jump of a derivative.
        q: Mean squared pre-activation. Zero stands for the limit of short vectors, half of which
            lie on either side of a kink.
        weight_variance: :math:`\sigma_w^2`.
        order: :math:`k`.

    Returns:
        :math:`\chi_k`.

    Raises:
        ValueError: If the activation is unknown or a variance is negative or not finite.
    """
    check_variances(weight_variance, 0.0)
    slope = derivative(elementwise(activation), order)
    if order == 1:
        q = max(q, SHORT)
    return weight_variance * gaussian_mean(lambda x: slope(x).square(), q)


def critical_weight_variance(activation: Activation, bias_variance: float = 0.0) -> float:
    r"""The :math:`\sigma_w^2` between order and chaos: :math:`\chi_1 = 1` at :math:`q^*`.

    For activations that saturate, as tanh :cite:p:`schoenholz2017deep`. Where
    :math:`\varphi(0) = 0` and there are no biases, :math:`q^* = 0` and a kink at zero counts with
    its slopes on either side: :math:`\sigma_w^2 = 2/(\varphi'(0^-)^2 + \varphi'(0^+)^2)`. Of ReLU
    and leaky ReLU every length is critical there.

    Args:
        activation: :math:`\varphi`, as in :func:`length_map`.
        bias_variance: :math:`\sigma_b^2`.

    Returns:
        The critical :math:`\sigma_w^2`.

    Raises:
        ValueError: If no length between 1e-12 and 1e6 is critical, the activation is unknown or,
            without biases, has no slopes at zero or none but zeros, or the variance is negative or
            not finite.
    """
    phi = elementwise(activation)
    check_variances(0.0, bias_variance)
    if length_map(phi, 0.0, 1.0, bias_variance) == 0:
        return 1 / _chi_of_short_vectors(phi, activation)

    def excess(log_q: float) -> float:
        q = math.exp(log_q)
        return q - length_map(phi, q, 1 / chi(phi, q, 1.0)) - bias_variance

    low, high = math.log(1e-12), math.log(1e6)
    if excess(low) * excess(high) > 0:
        raise ValueError(
            f"critical_weight_variance: no critical point for {activation!r} at bias variance "
            f"{bias_variance}; the activation must saturate"
        )
    q = math.exp(_root(excess, low, high))
    return 1 / chi(phi, q, 1.0)


def _chi_of_short_vectors(phi: Callable[[Tensor], Tensor], activation: Activation) -> float:
    r"""Limit of :math:`\E\varphi'(\sqrt q\,z)^2` for :math:`q\to0`, if there is one."""
    limit, near = chi(phi, 0.0, 1.0), chi(phi, 1e-50, 1.0)
    if not (limit > 0 and math.isclose(limit, near, rel_tol=1e-6)):
        raise ValueError(
            f"critical_weight_variance: {activation!r} has no slopes at zero, or is flat there; "
            "give an activation that has some, or biases a variance"
        )
    return limit


def correlation_map(
    activation: Activation,
    c: float,
    q: float,
    weight_variance: float,
    bias_variance: float = 0.0,
) -> float:
    r"""Correlation of two inputs after one more layer, both of length :math:`q = q^*`.

    :math:`(\sigma_w^2\,\E\varphi(u_1)\varphi(u_2) + \sigma_b^2)/q^*` for normal
    :math:`u_1, u_2` of variance :math:`q` and correlation :math:`c`
    :cite:p:`poole2016exponential`. For ReLU the closed form of Cho and Saul.

    Args:
        activation: As in :func:`length_map`; smooth, or ``"relu"``.
        c: Correlation now.
        q: Mean squared pre-activation of both.
        weight_variance: :math:`\sigma_w^2`.
        bias_variance: :math:`\sigma_b^2`.

    Returns:
        Correlation one layer deeper.

    Raises:
        ValueError: If the length is zero or the correlation outside [-1, 1], or an argument is
            refused by :func:`length_map` or :func:`bnmlp.theory.gaussian.gaussian_product`.
    """
    check_variances(weight_variance, bias_variance)
    if not (q > 0 and -1 <= c <= 1):
        raise ValueError(f"correlation_map: needs q > 0 and a correlation |c| <= 1, got {q}, {c}")
    if activation == "relu":
        overlap = q * (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / (2 * math.pi)
    else:
        overlap = gaussian_product(elementwise(activation), q, c)
    return (weight_variance * overlap + bias_variance) / length_map(
        activation, q, weight_variance, bias_variance
    )


def fixed_correlation(
    activation: Activation, weight_variance: float, bias_variance: float = 0.0
) -> float:
    r"""Stable fixed point :math:`c^*` of :func:`correlation_map` at :math:`q^*`: 1 when ordered.

    For smooth saturating activations. Without biases that of an odd activation in chaos is zero:
    the map is a power series in :math:`c` with positive coefficients, and fixes 0 and 1. Just above
    the critical point, where :math:`1-c^*<10^{-5}` drowns in rounding, to first order in
    :math:`\chi_1-1`; 1 where that is zero to rounding.

    Args:
        activation: As in :func:`length_map`.
        weight_variance: :math:`\sigma_w^2`.
        bias_variance: :math:`\sigma_b^2`.

    Returns:
        Correlation in deep layers.

    Raises:
        ValueError: As :func:`fixed_length` and :func:`correlation_map`.
    """
    q = fixed_length(activation, weight_variance, bias_variance)
    if q == 0 or chi(activation, q, weight_variance) <= 1:
        return 1.0
    if bias_variance == 0 and gaussian_mean(elementwise(activation), q) == 0:
        return 0.0
    if (distance := _distance_above_critical(activation, q, weight_variance)) < NEAR_CRITICAL:
        return 1 - distance

    def excess(c: float) -> float:
        return correlation_map(activation, c, q, weight_variance, bias_variance) - c

    # Above the fixed point the excess is negative up to c = 1, where it is zero again.
    top = 1 - 1e-3
    while excess(top) >= 0 and top < 1 - 1e-12:
        top = 1 - (1 - top) / 10
    if bias_variance == 0 and excess(1e-9) <= 0:
        return 0.0
    if excess(top) >= 0:
        return 1.0
    return _root(excess, 0.0 if bias_variance else 1e-9, top, xtol=1e-13, rtol=RELATIVE)


def _distance_above_critical(activation: Activation, q: float, weight_variance: float) -> float:
    r""":math:`1-c^*` to first order in :math:`\chi_1-1`, infinite for piecewise linear functions.

    Near one the correlation map is
    :math:`1 - \chi_1(1-c) + \frac12 q^*\chi_2(1-c)^2`, so :math:`1-c^* = 2(\chi_1-1)/(q^*\chi_2)`,
    where its slope is :math:`2-\chi_1`.

    Args:
        activation: As in :func:`length_map`.
        q: :math:`q^*`.
        weight_variance: :math:`\sigma_w^2`.

    Returns:
        Distance of :math:`c^*` from one.
    """
    bend = q * chi(activation, q, weight_variance, order=2)
    return 2 * (chi(activation, q, weight_variance) - 1) / bend if bend else math.inf


def depth_scales(
    activation: Activation, weight_variance: float, bias_variance: float = 0.0
) -> tuple[float, float]:
    r"""Layers over which lengths and correlations forget the input by a factor :math:`e`.

    :math:`\xi_q^{-1} = -\log(\chi_1 + \sigma_w^2\,\E\varphi''\varphi)` and
    :math:`\xi_c^{-1} = -\log(\sigma_w^2\,\E\varphi'(u_1)\varphi'(u_2))` at :math:`c^*`
    :cite:p:`schoenholz2017deep`; the latter diverges at the critical point as
    :math:`1/|\chi_1-1|`. For smooth saturating activations.

    Returns:
        :math:`\xi_q` and :math:`\xi_c` in layers; infinite where rounding leaves no decay.

    Raises:
        ValueError: As :func:`fixed_length` and :func:`correlation_map`.
    """
    phi = elementwise(activation)
    first, second = derivative(phi), derivative(phi, 2)
    q = fixed_length(phi, weight_variance, bias_variance)
    c = fixed_correlation(phi, weight_variance, bias_variance)
    slope_c = chi(phi, q, weight_variance)
    bend = weight_variance * gaussian_mean(lambda x: second(x) * phi(x), q)
    slope_q = slope_c + bend
    if slope_c > 1 and _distance_above_critical(phi, q, weight_variance) < NEAR_CRITICAL:
        slope_c = 2 - slope_c
    elif c < 1:
        slope_c = weight_variance * gaussian_product(first, q, c)
    return decay_length(slope_q), decay_length(slope_c)


def decay_length(slope: float) -> float:
    """Layers in which powers of a slope fall by a factor e; infinite from one on."""
    return math.inf if abs(slope) >= 1 else 0.0 if slope == 0 else -1 / math.log(abs(slope))


def residual_recursion(
    activation: Activation,
    weight_variances: Sequence[float],
    bias_variance: float = 0.0,
    branch_variance: float = 1.0,
    first: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""Lengths and gradients of a wide residual network :math:`x \leftarrow x + V\varphi(Wx+b)`.

    :math:`q = \sigma_w^2 p + \sigma_b^2`, then
    :math:`p \leftarrow p + \sigma_v^2\,\E\varphi(\sqrt q\,z)^2`, while a squared gradient grows
    towards the input by :math:`1 + \sigma_v^2\sigma_w^2\,\E\varphi'(\sqrt q\,z)^2` in each block
    :cite:p:`yang2017meanfield`.

    Args:
        activation: As in :func:`length_map`.
        weight_variances: :math:`\sigma_w^2` of each block, :math:`L` of them.
        bias_variance: :math:`\sigma_b^2`.
        branch_variance: :math:`\sigma_v^2`.
        first: :math:`p` of the input.

    Returns:
        :math:`p` before each block and at the end, and the logarithm of the ratio of gradient
        norms there and at the end. Shapes ``(L+1,)``, float64.

    Raises:
        ValueError: If the activation is unknown or a variance is negative or not finite.
    """
    phi = elementwise(activation)
    lengths, growth = [first], []
    for variance in weight_variances:
        check_variances(variance, bias_variance)
        q = variance * lengths[-1] + bias_variance
        lengths.append(lengths[-1] + length_map(phi, q, branch_variance))
        growth.append(0.5 * math.log1p(variance * chi(phi, q, branch_variance)))
    towards_input = torch.tensor([*growth, 0.0], dtype=torch.float64).flip(0).cumsum(0).flip(0)
    return torch.tensor(lengths, dtype=torch.float64), towards_input


def check_variances(weight_variance: float, bias_variance: float) -> None:
    """Refuse variances that are negative or not finite."""
    for name, value in (("weight", weight_variance), ("bias", bias_variance)):
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} variance must be finite and >= 0, got {value}")


def running_spread(
    depth: int,
    activation: str,
    *,
    gain: float = 1.0,
    gain_exponent: float = 0.0,
    steps: float = math.inf,
    batch_size: int,
    momentum: float = 0.1,
    first_variance: float = 1.0,
) -> Tensor:
    r"""Spread of representations under running statistics, compared with batch statistics.

    The recursion :eq:`running-spread` of the book, for wide networks with weights at rest and
    PyTorch's averages, which begin at one and hold the unbiased variance.

    Args:
        depth: Number of layers.
        activation: An odd function in ``bnmlp.ACTIVATIONS``: identity, tanh or sin.
        gain: :math:`\alpha`.
        gain_exponent: :math:`e` in :math:`\alpha_\ell = \alpha\,\ell^{-e}`.
        steps: Batches that have gone into the averages.
        batch_size: Samples in each.
        momentum: Weight of the newest batch.
        first_variance: Mean variance of what the first layer normalises.

    Returns:
        Logarithm of the ratio of standard deviations after each layer, float64. Shape ``(depth,)``.

    Raises:
        ValueError: If the activation is not odd or a number is out of range.
    """
    if activation not in ("identity", "tanh", "sin"):
        raise ValueError(f"running_spread: the activation must be odd, got {activation!r}")
    if not (batch_size > 1 and 0 <= momentum <= 1 and steps >= 0 and first_variance > 0):
        raise ValueError(
            "running_spread: needs two samples in a batch, momentum in [0, 1], steps >= 0 and a "
            f"positive variance, got {batch_size}, {momentum}, {steps}, {first_variance}"
        )
    sigma, memory = ACTIVATIONS[activation], (1 - momentum) ** steps
    bessel = batch_size / (batch_size - 1)
    seen = evaluated = first_variance  # variance of what a layer normalises, in either mode
    ratios = torch.empty(depth, dtype=torch.float64)
    for i, alpha in enumerate(gain_schedule(depth, gain, gain_exponent).tolist()):
        running = memory + (1 - memory) * bessel * seen
        q = alpha**2 * evaluated / running
        seen = gaussian_mean(lambda x: sigma(x).square(), alpha**2)
        evaluated = gaussian_mean(lambda x: sigma(x).square(), q)
        ratios[i] = 0.5 * math.log(evaluated / seen)
    return ratios
