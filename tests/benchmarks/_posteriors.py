"""Posteriors of posteriordb as Pyro models, written from their mathematics."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

Data = Mapping[str, object]
Draws = dict[str, Tensor]


@dataclass(frozen=True)
class Posterior:
    """A model, the data that it takes, and the parameters that the reference draws report.

    Args:
        model: The Pyro model.
        prepare: Makes its arguments from the data of the database, in some dtype.
        report: Makes the reported parameters from draws of the latents.
    """

    model: Callable[..., None]
    prepare: Callable[[Data, torch.dtype], tuple]
    report: Callable[[Draws], Draws] = lambda draws: draws


def columns(data: Data, dtype: torch.dtype, *names: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(data[name], dtype=dtype) for name in names)


# Models ----------------------------------------------------------------------------------------


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta_trans, sigma), obs=y)


def report_eight_schools(draws: Draws) -> Draws:
    theta = draws["mu"][:, None] + draws["tau"][:, None] * draws["theta_trans"]
    return {"mu": draws["mu"], "tau": draws["tau"], "theta": theta}


def regression(x: Tensor, y: Tensor) -> None:
    """Stan's default: no prior on the coefficients, none on the scale."""
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), x.shape[1:]))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    pyro.sample("y", dist.Normal(beta @ x.T, sigma[..., None]).to_event(1), obs=y)


def regression_cauchy(x: Tensor, y: Tensor) -> None:
    """The same with a prior on the scale."""
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), x.shape[1:]))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    pyro.sample("y", dist.Normal(beta @ x.T, sigma[..., None]).to_event(1), obs=y)


def blr(x: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand(x.shape[1:]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    pyro.sample("y", dist.Normal(beta @ x.T, sigma[..., None]).to_event(1), obs=y)


def kilpisjarvi(x: Tensor, y: Tensor, alpha_prior: tuple, beta_prior: tuple) -> None:
    alpha = pyro.sample("alpha", dist.Normal(*alpha_prior))
    beta = pyro.sample("beta", dist.Normal(*beta_prior))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def autoregression(lags: Tensor, y: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand(lags.shape[1:]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    mean = alpha[..., None] + beta @ lags.T
    pyro.sample("y", dist.Normal(mean, sigma[..., None]).to_event(1), obs=y)


def arma11(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    errors = [y[0] - mu - phi * mu]
    for before, now in itertools.pairwise(y):
        errors.append(now - (mu + phi * before + theta * errors[-1]))
    log_prob = dist.Normal(0.0, sigma[..., None]).log_prob(torch.stack(errors, -1))
    pyro.factor("y", log_prob.sum(-1))


def diamonds(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand(x.shape[1:]).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    pyro.factor("sigma_prior", dist.StudentT(3.0, 0.0, 10.0).log_prob(sigma))
    mean = intercept[..., None] + b @ x.T
    pyro.sample("y", dist.Normal(mean, sigma[..., None]).to_event(1), obs=y)


def gaussian_process(x: Tensor, y: Tensor) -> None:
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))[..., None, None]
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))[..., None, None]
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))[..., None, None]
    distance = (x[:, None] - x) / rho
    eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
    covariance = alpha**2 * torch.exp(-0.5 * distance**2) + sigma * eye
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), covariance), obs=y)


def _two_state_hmm(theta1: Tensor, theta2: Tensor, emission: Tensor) -> None:
    """The forward algorithm, without a term for the initial state; emission is (T, ..., 2).

    As a product of matrices, taken in pairs: log T operations on all times, not T on one.
    """
    transition = torch.stack([theta1, theta2], -2).log()
    steps = transition + emission[1:, ..., None, :]
    while len(steps) > 1:
        first, second = steps[: len(steps) // 2 * 2].unflatten(0, (-1, 2)).unbind(1)
        pairs = (first[..., None] + second[..., None, :, :]).logsumexp(-2)
        steps = torch.cat([pairs, steps[len(pairs) * 2 :]])
    pyro.factor("hmm", (emission[0][..., None] + steps[0]).logsumexp((-2, -1)))


def _at_times(data: Tensor, parameter: Tensor) -> Tensor:
    """Data along a first dimension, before those of a parameter."""
    return data.reshape(-1, *[1] * parameter.dim())


def _means(name: str, support: constraints.Constraint, like: Tensor) -> Tensor:
    value = pyro.sample(name, dist.ImproperUniform(support, (), (2,)))
    prior = dist.Normal(like.new_tensor([0.0, 3.0]), 1.0).to_event(1)
    pyro.factor(f"{name}_prior", prior.log_prob(value))
    return value


def hmm_exponential(u: Tensor, v: Tensor, concentration: Tensor) -> None:
    theta1 = pyro.sample("theta1", dist.Dirichlet(concentration[0]))
    theta2 = pyro.sample("theta2", dist.Dirichlet(concentration[1]))
    phi = _means("phi", constraints.positive_ordered_vector, u)
    rate = _means("lambda", constraints.positive_ordered_vector, u)
    emission = dist.Exponential(phi).log_prob(_at_times(u, phi))
    emission = emission + dist.Exponential(rate).log_prob(_at_times(v, rate))
    _two_state_hmm(theta1, theta2, emission)


def hmm_normal(u: Tensor, v: Tensor, concentration: Tensor, tau: float, rho: float) -> None:
    theta1 = pyro.sample("theta1", dist.Dirichlet(concentration[0]))
    theta2 = pyro.sample("theta2", dist.Dirichlet(concentration[1]))
    phi = _means("phi", constraints.ordered_vector, u)
    mean = _means("lambda", constraints.ordered_vector, u)
    emission = dist.Normal(phi, tau).log_prob(_at_times(u, phi))
    emission = emission + dist.Normal(mean, rho).log_prob(_at_times(v, mean))
    _two_state_hmm(theta1, theta2, emission)


def lotka_volterra(times: Tensor, start: Tensor, y: Tensor) -> None:
    theta = pyro.sample("theta", dist.ImproperUniform(_POSITIVE_VECTOR, (), (4,)))
    prior_mean = y.new_tensor([1.0, 0.05, 1.0, 0.05])
    prior_sd = y.new_tensor([0.5, 0.05, 0.5, 0.05])
    pyro.factor("theta_prior", dist.Normal(prior_mean, prior_sd).to_event(1).log_prob(theta))
    sigma = pyro.sample("sigma", dist.LogNormal(y.new_full((2,), -1.0), 1.0).to_event(1))
    z_init = pyro.sample(
        "z_init", dist.LogNormal(y.new_tensor(10.0).log(), 1.0).expand([2]).to_event(1)
    )
    z = _solve(z_init, theta, times)
    pyro.sample("y_init", dist.LogNormal(z_init.log(), sigma).to_event(1), obs=start)
    log_prob = dist.LogNormal(z.log(), sigma).to_event(1).log_prob(_aligned(y, z))
    pyro.factor("y", log_prob.sum(0))


_POSITIVE_VECTOR = constraints.independent(constraints.positive, 1)


def _aligned(y: Tensor, z: Tensor) -> Tensor:
    return y.reshape(len(y), *[1] * (z.dim() - 2), 2)


def _solve(z: Tensor, theta: Tensor, times: Tensor, substeps: int = 10) -> Tensor:
    """The populations at each time, by Runge-Kutta steps of fourth order from time 0."""
    a, b, c, d = theta.unbind(-1)
    alone, together = torch.stack([a, -c], -1), torch.stack([-b, d], -1)

    def slope(z: Tensor) -> Tensor:
        return z * (alone + together * z.flip(-1))

    path, before = [], 0.0
    for time in times.tolist():
        h = (time - before) / substeps
        for _ in range(substeps):
            k1 = slope(z)
            k2 = slope(z + h / 2 * k1)
            k3 = slope(z + h / 2 * k2)
            k4 = slope(z + h * k3)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(z)
        before = time
    return torch.stack(path)


# Data ------------------------------------------------------------------------------------------


def design(*named: Callable[[dict[str, Tensor]], Tensor] | str, y: str, log_y: bool = False):
    """Makes ``(x, y)``: an intercept, then columns by name or as functions of the data."""

    def prepare(data: Data, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        table = {
            name: torch.tensor(value, dtype=dtype)
            for name, value in data.items()
            if isinstance(value, list)
        }
        outcome = table[y].log() if log_y else table[y]
        made = [table[name] if isinstance(name, str) else name(table) for name in named]
        return torch.stack([torch.ones_like(outcome), *made], -1), outcome

    return prepare


def log(name: str) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda table: table[name].log()


def equals(name: str, level: int) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda table: (table[name] == level).to(table[name])


def log_volume(table: dict[str, Tensor]) -> Tensor:
    return (table["diam1"] * table["diam2"] * table["canopy_height"]).log()


def log_area(table: dict[str, Tensor]) -> Tensor:
    return (table["diam1"] * table["diam2"]).log()


def z_height(table: dict[str, Tensor]) -> Tensor:
    return (table["height"] - table["height"].mean()) / table["height"].std()


def centered(name: str, sds: float = 0.0) -> Callable[[dict[str, Tensor]], Tensor]:
    """A column minus its mean, over some number of standard deviations if that is not 0."""

    def column(table: dict[str, Tensor]) -> Tensor:
        x = table[name]
        return (x - x.mean()) / (sds * x.std() if sds else 1.0)

    return column


def product(*parts: Callable[[dict[str, Tensor]], Tensor]):
    return lambda table: torch.stack([part(table) for part in parts]).prod(0)


def column(name: str) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda table: table[name]


def prepare_log10_earnings(data: Data, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, y = design("height", y="earn")(data, dtype)
    return x, y.log10()


def prepare_kilpisjarvi(data: Data, dtype: torch.dtype) -> tuple:
    x, y = columns(data, dtype, "x", "y")
    return x, y, (data["pmualpha"], data["psalpha"]), (data["pmubeta"], data["psbeta"])


def prepare_lags(data: Data, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    (y,) = columns(data, dtype, "y")
    order = data["K"]
    lags = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], -1)
    return lags, y[order:]


def prepare_diamonds(data: Data, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, y = columns(data, dtype, "X", "Y")
    return x[:, 1:] - x[:, 1:].mean(0), y


def prepare_hmm(*constants: str) -> Callable[[Data, torch.dtype], tuple]:
    return lambda data, dtype: (
        *columns(data, dtype, "u", "v", "alpha"),
        *(data[name] for name in constants),
    )


_LOG_MESQUITE = [log(n) for n in ("diam1", "diam2", "canopy_height", "total_height", "density")]


def mesquite(*parts, logs: bool = True) -> Posterior:
    return Posterior(regression, design(*parts, y="weight", log_y=logs))


def earnings(*parts) -> Posterior:
    return Posterior(regression, design(*parts, y="earn", log_y=True))


def kidiq(*parts, model: Callable[..., None]) -> Posterior:
    return Posterior(model, design(*parts, y="kid_score"))


def _interaction(sds: float) -> Posterior:
    h, q = centered("mom_hs", sds), centered("mom_iq", sds)
    return kidiq(h, q, product(h, q), model=regression)


_NES = Posterior(
    regression,
    design(
        "real_ideo",
        "race_adj",
        *(equals("age_discrete", level) for level in (2, 3, 4)),
        "educ1",
        "gender",
        "income",
        y="partyid7",
    ),
)

POSTERIORS = {
    "eight_schools-eight_schools_noncentered": Posterior(
        eight_schools, lambda data, dtype: columns(data, dtype, "y", "sigma"), report_eight_schools
    ),
    "earnings-logearn_height": earnings("height"),
    "earnings-log10earn_height": Posterior(regression, prepare_log10_earnings),
    "earnings-logearn_height_male": earnings("height", "male"),
    "earnings-logearn_interaction_z": earnings(z_height, "male", product(z_height, column("male"))),
    "earnings-logearn_logheight_male": earnings(log("height"), "male"),
    "kilpisjarvi_mod-kilpisjarvi": Posterior(kilpisjarvi, prepare_kilpisjarvi),
    "mesquite-mesquite": mesquite(
        "diam1", "diam2", "canopy_height", "total_height", "density", "group", logs=False
    ),
    "mesquite-logmesquite": mesquite(*_LOG_MESQUITE, "group"),
    "mesquite-logmesquite_logva": mesquite(log_volume, log_area, "group"),
    "mesquite-logmesquite_logvas": mesquite(
        log_volume,
        log_area,
        lambda table: (table["diam1"] / table["diam2"]).log(),
        log("total_height"),
        log("density"),
        "group",
    ),
    "mesquite-logmesquite_logvolume": mesquite(log_volume),
    "sblrc-blr": Posterior(blr, lambda data, dtype: columns(data, dtype, "X", "y")),
    "kidiq-kidscore_momhs": kidiq("mom_hs", model=regression_cauchy),
    "kidiq-kidscore_momiq": kidiq("mom_iq", model=regression_cauchy),
    "kidiq-kidscore_momhsiq": kidiq("mom_hs", "mom_iq", model=regression_cauchy),
    "kidiq_with_mom_work-kidscore_interaction_c": _interaction(0.0),
    "kidiq_with_mom_work-kidscore_interaction_z": _interaction(2.0),
    "kidiq_with_mom_work-kidscore_mom_work": kidiq(
        *(equals("mom_work", level) for level in (2, 3, 4)), model=regression
    ),
    **{f"nes{year}-nes": _NES for year in (1972, 1976, 1980, 1984, 1988, 1996)},
    "arK-arK": Posterior(autoregression, prepare_lags),
    "arma-arma11": Posterior(arma11, lambda data, dtype: columns(data, dtype, "y")),
    "diamonds-diamonds": Posterior(diamonds, prepare_diamonds),
    "gp_pois_regr-gp_regr": Posterior(
        gaussian_process, lambda data, dtype: columns(data, dtype, "x", "y")
    ),
    "bball_drive_event_0-hmm_drive_0": Posterior(hmm_exponential, prepare_hmm()),
    "bball_drive_event_1-hmm_drive_1": Posterior(hmm_normal, prepare_hmm("tau", "rho")),
    "hudson_lynx_hare-lotka_volterra": Posterior(
        lotka_volterra, lambda data, dtype: columns(data, dtype, "ts", "y_init", "y")
    ),
}
