r"""The hot path: forward and backward of all layers and replicas, written out by hand.

Autograd keeps a copy of every intermediate result, allocates it anew in each step, and stacks the
gradients of a thousand layers before an optimiser reads them again. Here buffers stay between
steps, gradients live for one layer, and the weight update happens inside the backward loop, as
part of the matrix product. Derived and checked in the chapter "What a thousand layers
cost".
"""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from bnmlp.machine.memory import fresh
from bnmlp.networks import eager, fused
from bnmlp.networks.mlp import BNMLP

# Called with a layer's index, its weights (R, d, m), the gradient of its linear stage (R, d, n) and
# its input (R, m, n). It may change the weights.
Visit = Callable[[int, Tensor, Tensor, Tensor], None]


class Stack:
    """A run of layers of a model, with the buffers of one pass through them and back.

    Args:
        model: The network whose choices (normalisation, activation, gains) the layers follow.
        x: A batch, for its size, type and device. Shape ``(..., n, features)``.
        capacity: Number of layers the buffers hold; the model's depth if omitted.
    """

    def __init__(self, model: BNMLP, x: Tensor, capacity: int | None = None) -> None:
        # Weak, since a stack is kept for its model: a strong reference would keep both for ever.
        self.model, self.made_for = weakref.proxy(model), key_of(model, x)
        self.recipe, self.n, self.first = model.recipe, x.shape[-2], 0
        recipe, capacity = self.recipe, capacity or model.depth
        shape = (capacity, recipe.replicas, recipe.width, self.n)
        self.act_norm = recipe.order == "act_norm"
        self.averaged = recipe.norm == "batch" and not model.training
        self.fixed = recipe.norm == "none" or self.averaged  # statistics that no batch changes
        summed = recipe.width if recipe.norm == "layer" else self.n
        self.eps = recipe.eps / summed if recipe.unit_norm else recipe.eps
        self.scale = 1 / math.sqrt(summed) if recipe.unit_norm and not self.fixed else 1.0
        self.gains = model.gains_like(x)
        self.linear = fresh(shape, x.dtype, x.device).unbind()
        self.out = fresh(shape, x.dtype, x.device).unbind()
        thirds = self.act_norm or "sin" in str(recipe.activation)  # some keep a third stage
        self.nbytes = (2 + thirds) * math.prod(shape) * x.dtype.itemsize
        # What is between the two stages, for layers whose way back needs it.
        kept = fresh(shape, x.dtype, x.device) if self.act_norm else x.new_empty(shape[1:])
        self.middle = kept.unbind() if self.act_norm else (kept,) * capacity
        each = (*shape[:2], 1, self.n) if recipe.norm == "layer" else (*shape[:-1], 1)
        self.means, self.rstds = x.new_zeros(each), x.new_ones(each)
        self.mean, self.rstd = self.means.unbind(), self.rstds.unbind()
        # Gradients of the last way back, each (layers, R, d); None where there is no parameter.
        per_unit = (model.depth, *shape[1:-1])
        self.bias_grad = x.new_zeros(per_unit) if recipe.bias else None
        self.has_affine = recipe.affine and recipe.norm != "none"
        self.norm_weight_grad = x.new_zeros(per_unit) if self.has_affine else None
        self.norm_bias_grad = x.new_zeros(per_unit) if self.has_affine else None
        self.spare = [x.new_empty(shape[1:]) for _ in range(2)]
        self.passes = fused.passes(self, x) or eager.Eager(self, x)

    def forward(self, weights: Sequence[Tensor], h: Tensor, first: int = 0) -> Tensor:
        """Run some layers and keep what the way back needs.

        Args:
            weights: One matrix for each layer and replica. Each of shape ``(R, d, m)``.
            h: Representation that enters. Shape ``(R, m, n)``.
            first: Index in the model of the first of these layers.

        Returns:
            Representation that leaves, a view of a buffer. Shape ``(R, d, n)``.
        """
        self.first = first
        self._prepare(slice(first, first + len(weights)))
        for i, weight in enumerate(weights):
            torch.bmm(weight, h, out=self.linear[i])
            self.passes.forward(i, first + i)
            h = self.out[i]
        return h

    def _prepare(self, layers: slice) -> None:
        model = self.model
        affine = (model.norm_weight, model.norm_bias) if self.has_affine else (None, None)
        self.passes.prepare(model.layer_bias, *affine)
        if self.averaged:
            kept = layers.stop - layers.start
            self.means[:kept] = model.running_mean[layers].unsqueeze(-1)
            var = model.running_var[layers].unsqueeze(-1)
            torch.rsqrt(var + self.recipe.eps, out=self.rstds[:kept])

    def backward(
        self, weights: Sequence[Tensor], x: Tensor, grad: Tensor, visit: Visit
    ) -> Tensor | None:
        """Take a gradient back through the layers of the last :meth:`forward`.

        Args:
            weights: As given to :meth:`forward`.
            x: As ``h`` given to :meth:`forward`.
            grad: Gradient of the representation that left, which is overwritten.
                Shape ``(R, d, n)``.
            visit: Called for each layer, last first.

        Returns:
            Gradient of the representation that entered, in a buffer, None if that is the
            network's input. Shape ``(R, m, n)``.
        """
        for i in reversed(range(len(weights))):
            layer = self.first + i
            grad = self.passes.backward(i, layer, grad)
            below = None
            if layer:
                free = self.spare[grad.data_ptr() == self.spare[0].data_ptr()]
                below = torch.bmm(weights[i].mT, grad, out=free)
            visit(layer, weights[i], grad, self.out[i - 1] if i else x)
            if below is None:
                return None
            grad = below
        return grad

    def update_averages(self, layers: slice) -> None:
        """Move running averages towards the last forward pass, if that was one in training.

        Args:
            layers: Those of that pass.
        """
        model, recipe = self.model, self.recipe
        if recipe.norm != "batch" or self.averaged:
            return
        rstds, means = (
            t[: layers.stop - layers.start].squeeze(-1) for t in (self.rstds, self.means)
        )
        var = (rstds**-2 - self.eps).clamp_min_(0)  # rounding may take it below
        if recipe.unit_norm:
            var *= self.n
        elif recipe.center:
            var *= self.n / (self.n - 1)
        model.running_var[layers].lerp_(var, model.momentum)
        if recipe.center:
            model.running_mean[layers].lerp_(means, model.momentum)


_STACKS: "weakref.WeakKeyDictionary[BNMLP, Stack]" = weakref.WeakKeyDictionary()


def key_of(model: BNMLP, x: Tensor) -> tuple[object, ...]:
    """What buffers depend on: equal for batches and networks that can share them.

    Args:
        model: R networks.
        x: A batch. Shape ``(..., n, features)``.

    Returns:
        Size, type and device of the batch, the recipe, and whose statistics normalise.
    """
    return x.shape[-2], x.dtype, x.device, model.recipe, model.training


def step_bytes(model: BNMLP, n: int) -> float:
    """Memory of a training step for each layer and network, whatever the depth.

    Weights and the averages and parameters of units once, and the buffers of :class:`Stack`: two
    stages of the representation, a third where the activation comes first, statistics, gradients
    of the units' parameters. Two buffers of one representation each are left out, since all
    layers share them, as are the matrices at both ends.

    Args:
        model: R networks.
        n: Samples in a batch.

    Returns:
        Bytes.
    """
    recipe, size = model.recipe, model.input_weight.dtype.itemsize
    affine = recipe.affine and recipe.norm != "none"
    per_unit = 2 * (recipe.norm == "batch") + 2 * recipe.affine + recipe.bias
    per_unit += 2 * (recipe.norm != "layer") + 2 * affine + recipe.bias
    stages = 2 + (recipe.order == "act_norm")
    statistics = 2 * n if recipe.norm == "layer" else 0
    return size * (recipe.width * (recipe.width + stages * n + per_unit) + statistics)


def stack_of(model: BNMLP, x: Tensor) -> Stack:
    """Buffers for all layers of the model and batches like ``x``, kept from call to call."""
    stack = _STACKS.get(model)
    if stack is None or stack.made_for != key_of(model, x):
        _STACKS.pop(model, None)  # free the old buffers before taking new ones
        stack = _STACKS[model] = Stack(model, x)
    return stack


def backward_in_segments(
    model: BNMLP,
    x: Tensor,
    y: Tensor,
    weights_of: Callable[[range], Sequence[Tensor]],
    visit: Visit,
    *,
    finish: Callable[[Stack, range, Tensor], object] = lambda stack, layers, log2_scale: None,
    factor: Tensor | None = None,
    progress: Callable[[range], Iterable[int]] = iter,
    spare: int = 0,
) -> tuple[Tensor, Tensor]:
    """Visit the gradients of every layer, last first, with memory for the root of the depth.

    The way in keeps the representation at the start of each segment only; the way back runs each
    segment again, except for the last ones, whose buffers fit into the spare memory. Between
    segments the gradient is divided by a power of two, so that no depth over- or underflows, and
    nothing is rounded.

    Args:
        model: The network whose choices the layers follow.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Labels. Shape ``(R, n)``.
        weights_of: Gives the weights of consecutive layers, each of shape ``(R, d, m)``; index
            ``depth`` is the output matrix.
        visit: Called for each layer and, first of all, for the output matrix with (layer,
            gradient of the linear stage, input of the layer, binary logarithm of the factor by
            which the gradient has been divided). Shapes ``(R, d, n)``, ``(R, m, n)`` and ``(R,)``.
        finish: Called for each segment after its layers, with its buffers, its layers and the
            logarithm.
        factor: What the gradient of the logits is multiplied by. A scalar, one if omitted.
        progress: Wraps the loop over segments, as tqdm does.
        spare: Bytes for buffers that save the second way in.

    Returns:
        Losses, and numbers of samples whose largest logit was the label's. Both of shape ``(R,)``.
    """
    depth = model.depth
    length = max(1, math.isqrt(depth))
    starts = range(0, depth, length)
    stack = Stack(model, x, min(length, depth))
    kept = len(starts) - 1 - min(spare // stack.nbytes, len(starts) - 1)
    h = x.mT.expand(model.replicas, -1, -1)  # (R, in, n)
    passed: list[tuple[Stack, range, Sequence[Tensor] | None, Tensor]] = []
    for first in progress(starts):
        layers = range(first, min(first + length, depth))
        weights = weights_of(layers)
        if first < starts[kept]:
            passed.append((stack, layers, None, h))
            h = stack.forward(weights, h, first).clone()
        else:
            own = Stack(model, x, len(layers)) if first != starts[kept] else stack
            passed.append((own, layers, weights, h))
            h = own.forward(weights, h, first)
        del weights
    (output_weight,) = weights_of(range(depth, depth + 1))
    logits = model.head(h, output_weight)
    correct = (logits.argmax(-1) == y).sum(-1)
    losses, grad = cross_entropy(logits, y)
    grad = grad if factor is None else grad.mul_(factor)
    log2_scale = torch.zeros(model.replicas, dtype=grad.dtype, device=grad.device)
    below = torch.bmm(output_weight.mT, grad.mT)
    visit(depth, grad.mT, h, log2_scale)
    grad = below
    for _ in progress(starts[::-1]):
        stack, layers, held, h = passed.pop()
        # Exponents of largest entries: zero, infinity and nan have none, and stay what they are.
        power = torch.frexp(grad.abs().amax((1, 2)))[1]
        log2_scale = log2_scale + power
        grad = torch.ldexp(grad, -power[:, None, None])
        weights = weights_of(layers) if held is None else held
        if held is None:
            stack.forward(weights, h, layers.start)
        entered = stack.backward(weights, h, grad, _scaled(visit, log2_scale))
        finish(stack, layers, log2_scale)
        if entered is not None:  # as it is at the end, behind the first layer
            grad = entered
    return losses, correct


def _scaled(visit: Visit, log2_scale: Tensor) -> Visit:
    """The visit of a layer whose gradients have been divided by a factor."""
    return lambda layer, weight, grad, h: visit(layer, grad, h, log2_scale)


def cross_entropy(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of each replica, and its gradient.

    Args:
        logits: Shape ``(R, n, out)``.
        y: Labels. Shape ``(R, n)``.

    Returns:
        Losses of shape ``(R,)``, gradient of shape ``(R, n, out)``.
    """
    n = y.shape[-1]
    log_p = torch.log_softmax(logits, -1)
    index = y.unsqueeze(-1)
    losses = -log_p.gather(-1, index).mean((1, 2))
    grad = log_p.exp_().div_(n)
    return losses, grad.scatter_add_(-1, index, torch.full_like(grad[..., :1], -1 / n))
