"""The contestant in JAX: flowjax, one jitted update."""

from __future__ import annotations

from collections.abc import Callable

from tests.benchmarks._peers import BOUND, HIDDEN, NUM_BINS, NUM_LAYERS, Step, Task


def flowjax_step(task: Task) -> Step:
    """A jitted step of the library's own masked autoregressive flow, layers scanned as it does."""
    import jax
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow

    if task.device != "cpu" and jax.default_backend() != "gpu":
        raise NotImplementedError("this JAX sees no GPU")
    # Its knots are the inner ones: 7 make 8 bins.
    spline = None if task.affine else RationalQuadraticSpline(knots=NUM_BINS - 1, interval=BOUND)
    flow = masked_autoregressive_flow(
        jax.random.key(0),
        base_dist=Normal(jax.numpy.zeros(task.dim)),
        transformer=spline,
        flow_layers=NUM_LAYERS,
        nn_width=HIDDEN[0],
        nn_depth=len(HIDDEN),
        invert=not task.draws_in_one_pass,
    )
    return _training_step(flow, task) if task.trains else _plain_step(flow, task)


def _training_step(flow: object, task: Task) -> Step:
    import equinox as eqx
    import jax
    import optax
    import paramax

    params, static = eqx.partition(
        flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )
    optimizer = optax.adam(1e-3)
    loss = _loss(static, task)

    def update(params: object, state: object, key: jax.Array) -> tuple:
        key, now = jax.random.split(key)
        value, grads = jax.value_and_grad(loss)(params, now)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, key, value

    update = jax.jit(update, donate_argnums=(0, 1, 2))
    held = [params, optimizer.init(params), jax.random.key(1)]

    def step() -> None:
        *held[:], value = update(*held)
        value.block_until_ready()

    return step


def _loss(static: object, task: Task) -> Callable:
    import equinox as eqx
    import jax.numpy as jnp
    import paramax

    points = jnp.asarray(task.points().numpy(force=True))

    def valley(x: jnp.ndarray) -> jnp.ndarray:
        bends = x[..., 1:] - 0.5 * x[..., :-1] ** 2
        return -0.5 * x[..., 0] ** 2 - (bends**2).sum(-1)

    def loss(params: object, key: object) -> jnp.ndarray:
        flow = paramax.unwrap(eqx.combine(params, static))
        if task.measure == "log_prob":
            return -flow.log_prob(points).mean()
        x, log_q = flow.sample_and_log_prob(key, (task.num_draws,))
        return (log_q - valley(x)).mean()

    return loss


def _plain_step(flow: object, task: Task) -> Step:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import paramax

    arrays, static = eqx.partition(flow, eqx.is_array)
    points = jnp.asarray(task.points().numpy(force=True))

    @jax.jit
    def evaluate(arrays: object, key: jax.Array, points: jnp.ndarray) -> tuple:
        key, now = jax.random.split(key)
        flow = paramax.unwrap(eqx.combine(arrays, static))
        if "sample" in task.measure:
            return key, flow.sample(now, (task.num_draws,))
        return key, flow.log_prob(points)

    keys = [jax.random.key(1)]

    def step() -> None:
        keys[0], value = evaluate(arrays, keys[0], points)
        value.block_until_ready()

    return step
