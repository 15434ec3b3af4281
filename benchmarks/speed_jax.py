"""The peer outside of torch: Equinox's `Shared` on JAX, with the whole step as one program.

In: how much to measure. Out: `Figure`s. Called by `speed.py`; skipped, visibly, without Equinox.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from figures import Figure
from measure import interleave
from speed_models import Options


def equinox(options: Options) -> Iterator[Figure]:
    """The 16-block net in Equinox, its blocks shared and not: a compiled step with Adam."""
    if importlib.util.find_spec("equinox") is None:
        print("skipped: Equinox is not installed (pip install equinox jax)")
        return
    for batch in (1, 16):
        steps = {"untied": _step(False, batch), "Equinox Shared": _step(True, batch)}
        times = interleave(steps, options.seconds)
        yield Figure(
            "train step, whole program in JAX",
            f"16 blocks, batch {batch}",
            "Equinox Shared",
            "untied in Equinox",
            times.ratio("Equinox Shared", "untied"),
        )


def _step(shared: bool, batch: int) -> Callable[[], None]:
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    stem_key, *keys, head_key, x_key = jax.random.split(jax.random.key(0), 19)
    layers: Any = (
        eqx.nn.Conv2d(3, 16, 3, padding=1, key=stem_key),
        [eqx.nn.Conv2d(16, 16, 3, padding=1, key=key) for key in keys],
        eqx.nn.Linear(16, 10, key=head_key),
    )
    if shared:
        layers = eqx.nn.Shared(
            layers,
            where=lambda t: [tensor for conv in t[1][1:] for tensor in (conv.weight, conv.bias)],
            get=lambda t: [t[1][0].weight ** 2, t[1][0].bias] * 15,
        )

    def loss(layers: Any, x: Any) -> Any:
        stem, convs, head = layers() if shared else layers
        x = stem(x)
        for conv in convs:
            x = x + jax.nn.relu(conv(x))
        return head(x.mean((1, 2))).sum()

    @eqx.filter_jit
    def step(state: Any, x: Any) -> Any:
        layers, mean, square = state
        grads = eqx.filter_grad(lambda m: jax.vmap(lambda x: loss(m, x))(x).sum())(layers)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grads)
        square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, square, grads)
        change = jax.tree.map(lambda m, s: -1e-3 * m / (jnp.sqrt(s) + 1e-8), mean, square)
        return eqx.apply_updates(layers, change), mean, square

    zeros = jax.tree.map(jnp.zeros_like, eqx.filter(layers, eqx.is_inexact_array))
    state = (layers, zeros, jax.tree.map(jnp.copy, zeros))
    x = jax.random.normal(x_key, (batch, 3, 16, 16))

    def run() -> None:
        nonlocal state
        state = step(state, x)
        jax.block_until_ready(eqx.filter(state, eqx.is_array))

    return run
