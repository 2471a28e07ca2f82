"""Eight schools: three posteriors of one model, compared, with a verdict on each.

Eight schools coached pupils for a test, and each reports the effect it saw and its standard
error. How much of the difference between schools is real? (Rubin, 1981)

    python examples/eight_schools.py

fits a mean-field, a full-rank and a flow posterior, prints how far each is to be trusted, and
writes an overlay of the three, and the draws of the flow and a page on its fit, to the folder given
by ``--output``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

import pyroflows as pf

EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

FLOWS = {"mean field": "diagonal", "full rank": "affine", "flow": "nsf"}


def noncentered(effect, error):
    """Each school's effect as a standardised deviation from the mean of all schools."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        deviation = pyro.sample("deviation", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * deviation)
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


def centered(effect, error):
    """The same model in its textbook form: a funnel, and hard for every approximation."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


def fit_and_export(model, flow: str, *, seed: int, num_steps: int | None, num_samples: int):
    """Fit one guide; return the fit and its draws."""
    guide = pf.AutoFlow(model, flow)
    data = (EFFECT, ERROR)
    fit = pf.fit_guide(model, guide, model_args=data, num_steps=num_steps, seed=seed)
    idata = pf.to_inference_data(
        guide, model, model_args=data, num_samples=num_samples, fit=fit, seed=seed
    )
    return fit, idata


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--centered", action="store_true", help="the textbook form of the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("eight_schools"), help="a folder")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args(argv)

    model = centered if args.centered else noncentered
    num_steps, num_samples = (20, 1000) if args.smoke else (None, 4000)

    posteriors = {}
    for name, flow in FLOWS.items():
        fit, posteriors[name] = fit_and_export(
            model, flow, seed=args.seed, num_steps=num_steps, num_samples=num_samples
        )
        print(f"\n{name} ({flow})\n{fit}")

    print(f"\n{pf.compare_fits(posteriors).to_string()}\n")

    args.output.mkdir(parents=True, exist_ok=True)
    figure = pf.plot_posteriors(posteriors, var_names=["mu", "tau"])
    figure.savefig(args.output / "posteriors.png", dpi=150)
    posteriors["flow"].to_netcdf(args.output / "flow.nc")
    pf.write_report(posteriors["flow"], args.output / "report.html", title="Eight schools: flow")
    print(f"Wrote posteriors.png, flow.nc and report.html to {args.output}.")


if __name__ == "__main__":
    main()
