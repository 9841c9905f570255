"""Singular values of the Jacobian of a network and of its parts, by products alone.

A product with the transposed Jacobian is one backward pass. A product with the Jacobian itself is
the derivative of that, which is linear in its vector, by this vector. So no matrix is formed where
it would be large: from a random start, bidiagonalisation (Golub and Kahan) gives the Gauss
quadrature of the spectrum that the start sees, nodes and weights.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnmlp.diagnosis.forms import logits_of, output_of
from bnmlp.diagnosis.kept import everything_kept
from bnmlp.layers.seeds import random_source
from bnmlp.machine.precision import float64
from bnmlp.machine.structures import first_tensor, mapped

EXACT = 512  # rows or columns up to which all of them are computed
STEPS = 40  # of the bidiagonalisation
STARTS = 3  # random vectors


@dataclass(frozen=True)
class Spectrum:
    """Squared singular values as a distribution over the smaller side's directions.

    Attributes:
        values: Singular values, descending: all of them, or nodes of a quadrature.
        weights: Share of directions that each stands for; they sum to one.
        exact: Whether these are all singular values.
        rows: Numbers that come out.
        columns: Numbers that go in.
    """

    values: np.ndarray
    weights: np.ndarray
    exact: bool
    rows: int
    columns: int

    @property
    def mean_square(self) -> float:
        """Mean squared singular value."""
        return float((self.weights * self.values**2).sum())

    @property
    def largest(self) -> float:
        """The largest singular value; of a quadrature its largest node, which is a lower bound."""
        return float(self.values[0])

    def quantile(self, share: float) -> float:
        """The singular value below which this share of directions lies."""
        order = np.argsort(self.values)
        total = np.cumsum(self.weights[order])
        return float(self.values[order][min(int(np.searchsorted(total, share)), len(order) - 1)])

    def __str__(self) -> str:
        kind = "all" if self.exact else "quadrature"
        return (
            f"rms {math.sqrt(self.mean_square):.3g}, largest {self.largest:.3g}, median "
            f"{self.quantile(0.5):.3g}, tenth {self.quantile(0.1):.3g} ({kind}, "
            f"{self.rows} x {self.columns})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything by name."""
        return {
            "values": self.values.tolist(), "weights": self.weights.tolist(), "exact": self.exact,
            "rows": self.rows, "columns": self.columns, "mean_square": self.mean_square,
        }  # fmt: skip


def jacobian_spectra(
    model: nn.Module, x: Any, names: Iterable[str] | None = None, *, training: bool | None = True
) -> dict[str, Spectrum]:
    """Spectra of the model, as ``"model"``, and of its parts.

    The whole batch goes in and comes out: with batch normalisation in training mode samples
    depend on each other.

    Args:
        model: Any module, left as it was.
        x: Its input; the Jacobian is taken in its first floating-point tensor.
        names: Parts to measure; the model's own if omitted.
        training: Mode; as it is if None.

    Returns:
        By name, in the order of the parts. Parts that were not called, or from whose output no
        derivative leads to their input, are left out.

    Raises:
        ValueError: If a name is unknown, or the input holds no floating-point numbers.
    """
    parts = dict(model.named_modules())
    chosen = [name for name, _ in model.named_children()] if names is None else list(names)
    if unknown := [name for name in chosen if name not in parts]:
        raise ValueError(f"measure: no part is called {unknown[0]!r}; see named_modules()")
    found: dict[str, Spectrum] = {}
    with everything_kept(model, training):
        given = _inputs(model, {parts[name]: name for name in chosen}, x)
        whole = _linear(lambda value: logits_of(output_of(model, value)), x)
        if whole is None:
            raise ValueError("measure: a Jacobian needs an input of floating-point numbers")
        found["model"] = _spectrum(*whole)
        for name in chosen:
            if name in given:
                arguments, keywords = given[name]
                call = _part(parts[name], keywords)
                part = _linear(call, arguments)
                if part is not None:
                    found[name] = _spectrum(*part)
    return found


Product = Callable[[Tensor], Tensor]


def _part(module: nn.Module, keywords: dict[str, Any]) -> Callable[[Any], Tensor | None]:
    return lambda arguments: first_tensor(module(*arguments, **keywords))


def _inputs(
    model: nn.Module, wanted: dict[nn.Module, str], x: Any
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """What each part is given at its first call."""
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given.setdefault(wanted[module], (_copied(arguments), keywords))

    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in wanted]
    try:
        with torch.no_grad():
            output_of(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return given


def _copied(value: Any) -> Any:
    """Copies of tensors, which a module may overwrite."""
    return mapped(value, lambda t: t.detach().clone())


def _linear(
    function: Callable[[Any], Tensor | None], given: Any
) -> tuple[Product, Product, Tensor, Tensor] | None:
    """Products with the Jacobian and its transpose, and tensors like its output and input."""
    with torch.enable_grad():
        given = _copied(given)
        h = first_tensor(given)
        if h is None:
            return None
        h.requires_grad_()
        out = function(mapped(given, lambda t: t * 1 if t is h else t))  # may be overwritten
        if out is None or not out.requires_grad:
            return None
        (probe,) = torch.autograd.grad(out.sum(), h, retain_graph=True, allow_unused=True)
        if probe is None:
            return None
        u = torch.zeros_like(out, requires_grad=True)
        (back,) = torch.autograd.grad(out, h, u, create_graph=True)

    def transposed(v: Tensor) -> Tensor:
        return torch.autograd.grad(out, h, v.view_as(out), retain_graph=True)[0].detach()

    def forward(v: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(back, u, v.view_as(h), retain_graph=True)
        return found.detach()

    return forward, transposed, out.detach(), h.detach()


def _spectrum(forward: Product, transposed: Product, out: Tensor, h: Tensor) -> Spectrum:
    rows, columns = out.numel(), h.numel()
    if min(rows, columns) <= EXACT:
        return _all_values(forward, transposed, out, h)
    noise = random_source(0)
    values, weights = [], []
    for _ in range(STARTS):
        size, product, back = (
            (h.shape, forward, transposed) if columns <= rows else (out.shape, transposed, forward)
        )
        start = torch.randn(size, generator=noise, dtype=torch.float64, device="cpu")
        nodes, shares = _quadrature(product, back, start.to(h.device, h.dtype))
        values.append(nodes)
        weights.append(shares / STARTS)
    order = np.argsort(-np.concatenate(values))
    return Spectrum(
        np.concatenate(values)[order], np.concatenate(weights)[order], False, rows, columns
    )


def _all_values(forward: Product, transposed: Product, out: Tensor, h: Tensor) -> Spectrum:
    """Every row of the smaller side, one product each."""
    rows, columns = out.numel(), h.numel()
    product, like = (transposed, out) if rows <= columns else (forward, h)
    unit = torch.zeros_like(like).view(-1)
    found = []
    for i in range(like.numel()):
        unit.zero_()[i] = 1
        found.append(float64(product(unit.view_as(like))).flatten())
    values = torch.linalg.svdvals(torch.stack(found)).cpu().numpy()
    return Spectrum(values, np.full(len(values), 1 / len(values)), True, rows, columns)


def _quadrature(product: Product, back: Product, start: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Golub-Kahan bidiagonalisation with full reorthogonalisation: nodes and weights."""
    v = start.flatten() / start.norm()
    left: list[Tensor] = []
    right = [v]
    diagonal: list[float] = []
    above: list[float] = []
    beta, u = 0.0, None
    for _ in range(min(STEPS, start.numel())):
        w = product(v.view_as(start)).flatten()
        w = _cleaned(w if u is None else w - beta * u, left)
        alpha = float(w.norm())
        diagonal.append(alpha)
        if not alpha > 1e-12 * max(diagonal):
            break
        u = w / alpha
        left.append(u)
        r = _cleaned(back(u).flatten() - alpha * v, right)
        beta = float(r.norm())
        if not beta > 1e-12 * max(diagonal):
            break
        above.append(beta)
        v = r / beta
        right.append(v)
    size = len(diagonal)
    b = np.diag(diagonal) + np.diag(above[: size - 1], 1)
    _, s, vt = np.linalg.svd(b)
    return s, vt[:, 0] ** 2


def _cleaned(w: Tensor, basis: list[Tensor]) -> Tensor:
    if not basis:
        return w
    q = torch.stack(basis)
    for _ in range(2):
        w = w - q.mT @ (q @ w)
    return w
