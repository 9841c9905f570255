"""Gradient descent that looks at effective learning rates, for every network."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnmlp.measurements.rates import lengths, spread
from bnmlp.networks.losses import parameter_gradients
from bnmlp.networks.protocol import Network
from bnmlp.theory.weight_dynamics import critical_learning_rate, momentum_path
from bnmlp.training.networks import as_module

# From rates (matrices, R) and step to learning rates: a number, or of shape (R,) or (matrices, R).
Rule = Callable[[Tensor, int], "float | Tensor"]


class Moment(NamedTuple):
    """What one step was: everything as it was before the step. :func:`history` has all in one.

    Attributes:
        losses: Mean cross entropy. Shape ``(R,)``.
        correct: Samples that were right. Shape ``(R,)``.
        rates: Gradient over weight norms of the normalised matrices, float64. Shape ``(M, R)``.
        norms: Of these weights, float64. Shape ``(M, R)``.
        learning_rates: Of these matrices in this step, float64. Shape ``(M, R)``.
    """

    losses: Tensor
    correct: Tensor
    rates: Tensor
    norms: Tensor
    learning_rates: Tensor

    @property
    def spread(self) -> Tensor:
        """Log-ratio of the largest to the smallest rate, nats. Shape ``(R,)``."""
        return spread(self.rates.movedim(-2, 0))

    @property
    def turns(self) -> Tensor:
        """The same of learning rate times rate, the angle by which a matrix turns."""
        return spread((self.learning_rates * self.rates).movedim(-2, 0))

    @property
    def base_norms(self) -> Tensor:
        """Gradient norms that weights of norm one would have. Shape ``(M, R)``."""
        return self.rates * self.norms.square()

    def of(self, matrices: slice | Sequence[int] | Sequence[bool]) -> "Moment":
        """The same, of some of the matrices only."""
        fields = ("rates", "norms", "learning_rates")
        return self._replace(**{name: getattr(self, name)[..., matrices, :] for name in fields})


class Descent:
    r"""Steps :math:`v\leftarrow\beta v+g+\gamma W`, :math:`W\leftarrow W-\lambda v`.

    The learning rate :math:`\lambda` of each normalised matrix comes from a rule that sees all
    rates :math:`E=\lVert g\rVert/\lVert W\rVert`. Other parameters take plain steps, without
    momentum and decay.

    Args:
        network: R networks; their parameters change in place.
        rule: Learning rates of the normalised matrices.
        momentum: :math:`\beta`.
        weight_decay: :math:`\gamma`.
        others: Learning rates of all other parameters, from rates and step: a number or of shape
            ``(R,)``; those of the last normalised matrix if omitted.
        sphere: Scale every normalised matrix back to its length after each step.

    Raises:
        ValueError: If no matrix of the network is normalised.
    """

    def __init__(
        self,
        network: Network,
        rule: Rule,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        others: Rule | None = None,
        sphere: bool = False,
    ) -> None:
        self.network, self.module = network, as_module(network)
        self.rule, self.others, self.sphere = rule, others, sphere
        self.momentum, self.weight_decay = momentum, weight_decay
        self.names = network.normalized()
        if not self.names:
            raise ValueError("no matrix of this network is normalised, so none has a rate")
        self.velocity: dict[str, Tensor] = {}

    def step(self, x: Tensor, y: Tensor, t: int) -> Moment:
        """Take one step and tell what it was.

        Args:
            x: Samples. Shape ``(n, ...)`` or ``(R, n, ...)``.
            y: Labels. Shape ``(n,)`` or ``(R, n)``.
            t: Number of the step, from 0, for the rule.

        Returns:
            Everything as it was before.
        """
        gradients, losses, correct = parameter_gradients(self.network, x, y)
        with torch.no_grad():
            along = self.network.weight_matrices(gradients)
            values = {k: p.detach() for k, p in self.module.named_parameters()}
            weights = self.network.weight_matrices(values)
            norms = lengths(weights[k] for k in self.names)
            rates = lengths(along[k] for k in self.names) / norms
            sizes = self._sizes(self.rule(rates, t), rates)
            for name, size, norm in zip(self.names, sizes, norms, strict=True):
                w = weights[name]
                w.sub_(_columns(size, w) * self._way(name, along, weights))
                if self.sphere:
                    w.mul_(_columns(norm / lengths([w])[0], w))
            others = sizes[-1] if self.others is None else self.others(rates, t)
            self._others(gradients, _like(others, rates).expand(len(sizes[-1])))
        return Moment(losses, correct, rates, norms, sizes)

    def _sizes(self, value: float | Tensor, rates: Tensor) -> Tensor:
        return _like(value, rates).expand_as(rates)

    def _way(self, name: str, along: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
        way = along[name]
        if self.weight_decay:
            way = way + self.weight_decay * weights[name]
        if self.momentum:
            if name not in self.velocity:
                self.velocity[name] = torch.zeros_like(way)
            way = self.velocity[name].mul_(self.momentum).add_(way)
        return way

    def _others(self, gradients: dict[str, Tensor], sizes: Tensor) -> None:
        """Plain steps of the parameters that are not made of normalised matrices."""
        for name, parameter in self.module.named_parameters():
            made_of = self.network.weight_matrices({name: parameter})
            if name in gradients and not set(made_of) & set(self.names):
                axis = self.network.replica_axis(name)
                size = sizes.to(parameter)
                if axis is not None:
                    shape = [1] * parameter.ndim
                    shape[axis] = len(size)
                    size = size.view(shape)
                parameter.sub_(size * gradients[name])


def descent(
    network: Network, batches: Iterable[tuple[Tensor, Tensor]], rule: Rule, **options: Any
) -> Iterator[Moment]:
    """Train on batches, a step for each.

    Args:
        network: R networks; their parameters change in place.
        batches: Samples and labels.
        rule: Learning rates, see :class:`Descent`.
        **options: Of :class:`Descent`.

    Yields:
        What each step was.
    """
    steps = Descent(network, rule, **options)
    for t, (x, y) in enumerate(batches):
        yield steps.step(x, y, t)


def history(moments: Iterable[Moment]) -> Moment:
    """All steps in one: each field with an axis of steps in front."""
    return Moment(*map(torch.stack, zip(*moments, strict=True)))


def mapped_rates(
    run: Moment, momentum: float = 0.0, learning_rates: Iterable[float | Tensor] | None = None
) -> Tensor:
    """What rates would be if gradients at unit weights kept the length that they have at first.

    Args:
        run: All steps, of :func:`history`.
        momentum: Of the descent.
        learning_rates: Of each step, those of the run if omitted.

    Returns:
        Before each step, by :func:`bnmlp.theory.weight_dynamics.momentum_map` with gradients that
        have nothing to do with velocities. Shape ``(steps, M, R)``.
    """
    base = run.base_norms[0]
    sizes = run.learning_rates if learning_rates is None else learning_rates
    return base / momentum_path(run.norms[0] ** 2, itertools.repeat(base), sizes, momentum)


def held(value: float | Tensor) -> Rule:
    """One learning rate for all matrices, constant; a number or of shape ``(R,)``."""
    return lambda rates, t: value


def critical(target: float | Tensor, among: slice = slice(None)) -> Rule:
    """At most the critical learning rate of the moment, where largest and smallest rate meet.

    Args:
        target: The learning rate to reach.
        among: Matrices whose rates are looked at.

    Returns:
        The rule.
    """
    return lambda rates, t: torch.minimum(
        _like(target, rates), critical_learning_rate(rates[among])
    )


def equalised(target: float | Tensor) -> Rule:
    """Every matrix turns by one angle, that of ``target`` at the geometric mean of the rates."""
    return tilted(target, 0.0)


def tilted(target: float | Tensor, slope: float) -> Rule:
    """As :func:`equalised`, but by ``slope`` nats faster with every matrix towards the input."""

    def rule(rates: Tensor, t: int) -> Tensor:
        place = torch.arange(len(rates)).to(rates) - (len(rates) - 1) / 2
        each = _like(target, rates) * rates.log().mean(0).exp() / rates
        return each * (-slope * place).exp()[:, None]

    return rule


def levelled(target: float | Tensor) -> Rule:
    """As :func:`equalised`, but at the median of the rates, which may be zero."""
    return lambda rates, t: target * rates.median(0).values / rates.clamp_min(1e-30)


def cosine(target: float | Tensor, steps: int) -> Rule:
    """One learning rate for all matrices that falls from ``target`` to zero along a cosine."""
    return lambda rates, t: target * (1 + math.cos(math.pi * t / steps)) / 2


def warmed(target: float | Tensor, steps: int) -> Rule:
    """One learning rate for all matrices that rises linearly to ``target`` over some steps."""
    return lambda rates, t: target * min(1, (t + 1) / steps)


def rule_of(
    schedule: str, target: float | Tensor, *, steps: int = 1, warmup: int = 1, tilt: float = 0.0
) -> Rule:
    """The rule of a schedule by its name.

    Args:
        schedule: ``"constant"``, ``"linear"`` (a warm-up), ``"cosine"``, ``"critical"``,
            ``"equalised"``, ``"levelled"`` or ``"tilted"``.
        target: The learning rate to reach.
        steps: Of the training, for the cosine.
        warmup: Steps of the warm-up.
        tilt: See :func:`tilted`.

    Returns:
        The rule.

    Raises:
        ValueError: If the name is unknown.
    """
    rules: dict[str, Callable[[], Rule]] = {
        "constant": lambda: held(target),
        "linear": lambda: warmed(target, warmup),
        "cosine": lambda: cosine(target, steps),
        "critical": lambda: critical(target),
        "equalised": lambda: equalised(target),
        "levelled": lambda: levelled(target),
        "tilted": lambda: tilted(target, tilt),
    }
    if schedule not in rules:
        raise ValueError(f"unknown schedule {schedule!r}; use one of {', '.join(rules)}")
    return rules[schedule]()


def turning(angles: Tensor) -> Rule:
    """Learning rates at which every matrix turns by an angle of its own.

    Args:
        angles: Learning rate times rate. Shape ``(M, 1)`` or ``(M, R)``.

    Returns:
        The rule.
    """
    return lambda rates, t: angles / rates


def _like(value: float | Tensor, rates: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=rates.dtype, device=rates.device)


def _columns(size: Tensor, weight: Tensor) -> Tensor:
    """One number for each network as a factor on ``(R, rows, columns)``."""
    return size.to(weight)[:, None, None]
