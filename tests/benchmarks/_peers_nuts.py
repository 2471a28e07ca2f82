"""NUTS of NumPyro and of Pyro: seconds until 4,000 draws are effective."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial

import numpy as np

from tests.benchmarks._peers_fit import EFFECTIVE_DRAWS
from tests.benchmarks._peers_targets import POSTERIORS, german_credit_data
from tests.benchmarks._schools import EFFECT, ERROR

NUM_CHAINS = 4


def smallest_ess(draws: dict[str, np.ndarray]) -> float:
    """The smallest bulk effective sample size over all coordinates of all sites."""
    import arviz as az

    data = az.convert_to_dataset({name: np.asarray(value) for name, value in draws.items()})
    ess = az.ess(data, method="bulk")
    return min(float(np.min(ess[name].values)) for name in ess.data_vars)


# NumPyro -------------------------------------------------------------------------------------


def numpyro_models() -> dict[str, Callable[[], Callable[[], None]]]:
    return {
        "german_credit": _credit,
        "eight_schools": partial(_schools, centered=False),
        "eight_schools_centered": partial(_schools, centered=True),
    }


def _credit() -> Callable[[], None]:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    x, y = (jnp.asarray(value.numpy()) for value in german_credit_data())

    def model() -> None:
        w = numpyro.sample("w", dist.Normal(jnp.zeros(25), 10.0).to_event(1))
        numpyro.sample("default", dist.Bernoulli(logits=x @ w).to_event(1), obs=y)

    return model


def _schools(*, centered: bool) -> Callable[[], None]:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    effect, error = (jnp.asarray(value.numpy()) for value in (EFFECT, ERROR))

    def model() -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("school", 8):
            if centered:
                theta = numpyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * numpyro.sample("deviation", dist.Normal(0.0, 1.0))
            numpyro.sample("effect", dist.Normal(theta, error), obs=effect)

    return model


def numpyro_nuts(
    target: str, *, chains: str, num_draws: int, seed: int, clock: Callable[[], float]
) -> dict[str, object]:
    """Four chains, compilation counted.

    A second run, already compiled, tells what sampling takes: half of it, warm-up being as long.
    By that much a lack or a surplus of effective draws is made good.
    """
    if chains == "parallel":
        flags = f"--xla_force_host_platform_device_count={NUM_CHAINS}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    import jax
    import numpyro  # noqa: F401
    from numpyro.infer import MCMC, NUTS

    make = numpyro_models().get(target)
    if make is None:
        raise NotImplementedError(f"no NumPyro model of {target}")
    model = make()
    options = {"num_warmup": num_draws, "num_samples": num_draws, "num_chains": NUM_CHAINS}
    jax.numpy.zeros(1).block_until_ready()  # the backend itself
    start = clock()
    mcmc = MCMC(NUTS(model), chain_method=chains, progress_bar=False, **options)
    mcmc.run(jax.random.key(seed))
    draws = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
    seconds = clock() - start
    start = clock()
    mcmc.run(jax.random.key(seed + 1))
    jax.block_until_ready(mcmc.get_samples())
    sampling = (clock() - start) / 2
    ess = smallest_ess(draws)
    needed = seconds + (EFFECTIVE_DRAWS / ess - 1) * sampling
    return {"seconds_to_4000": needed, "seconds": seconds, "effective": ess}


# Pyro ----------------------------------------------------------------------------------------


def pyro_nuts(
    target: str, *, num_draws: int, seed: int, clock: Callable[[], float]
) -> dict[str, object]:
    """One chain of a quarter of the draws, scaled up to a whole warm-up and all effective draws."""
    import pyro
    from pyro.infer import MCMC, NUTS

    pyro.set_rng_seed(seed)
    few = max(num_draws // 4, 4)
    kernel = NUTS(POSTERIORS[target]().model, jit_compile=True, ignore_jit_warnings=True)
    marks: list[float] = []
    mcmc = MCMC(
        kernel,
        num_samples=few,
        warmup_steps=few,
        disable_progbar=True,
        hook_fn=lambda *_: marks.append(clock()),
    )
    start = clock()
    mcmc.run()
    warm_up, sampling = marks[few - 1] - start, marks[-1] - marks[few - 1]
    ess = smallest_ess({k: v.numpy() for k, v in mcmc.get_samples(group_by_chain=True).items()})
    scale = num_draws / few
    needed = warm_up * scale + sampling * EFFECTIVE_DRAWS / ess if ess > 0 else math.inf
    return {"seconds_to_4000": needed, "seconds": warm_up + sampling, "effective": ess}


SAMPLERS: dict[str, Callable[..., dict[str, object]]] = {
    **{
        f"numpyro {chains}": partial(numpyro_nuts, chains=chains)
        for chains in ("vectorized", "parallel", "sequential")
    },
    "pyro nuts": pyro_nuts,
}
