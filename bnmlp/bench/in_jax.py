"""The training step of the book's network as one writes it in JAX, to be compared with."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bnmlp.networks.mlp import BNMLP


def jax_step(model: BNMLP, x: Tensor, y: Tensor, learning_rate: float) -> Callable[[], Any] | None:
    """A step of all replicas: a scan over layers, vectorised over replicas, compiled.

    Running averages, which the others update, are left out.

    Args:
        model: Networks with standard batch normalisation and tanh.
        x: Samples. Shape ``(n, in_features)``.
        y: Labels. Shape ``(n,)``.
        learning_rate: Step size.

    Returns:
        What takes the next step, None where JAX is not installed.
    """
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None

    gains = jnp.asarray([row[0] for row in model.recipe.layer_gains], jnp.float32)
    samples, labels = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())

    def layer(h: Any, weight_and_gain: Any) -> tuple[Any, None]:
        weight, gain = weight_and_gain
        z = weight @ h
        centred = z - z.mean(1, keepdims=True)
        scale = jax.lax.rsqrt((centred**2).mean(1, keepdims=True) + model.eps)
        return jnp.tanh(gain * centred * scale), None

    def loss(parameters: Any) -> Any:
        first, hidden, last = parameters
        h, _ = layer(samples.T, (first, gains[0]))
        h, _ = jax.lax.scan(layer, h, (hidden, gains[1:]))
        log_p = jax.nn.log_softmax((last @ h).T)
        return -log_p[jnp.arange(len(labels)), labels].mean()

    def descend(parameters: Any) -> tuple[Any, Any]:
        value, gradient = jax.value_and_grad(loss)(parameters)
        return value, [p - learning_rate * g for p, g in zip(parameters, gradient, strict=True)]

    # The replicas come first in every array, and old parameters give their memory to the new.
    step = jax.jit(jax.vmap(descend), donate_argnums=0)
    start = (model.input_weight, model.hidden_weight.transpose(0, 1), model.output_weight)
    held = [[jnp.array(p.detach().numpy()) for p in start]]

    def run() -> Any:
        losses, held[0] = step(held[0])
        return jax.block_until_ready(losses)

    return run
