"""Figures: what is drawn, from whatever numbers of draws, without side effects or warnings."""

from __future__ import annotations

import math
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pyroflows as pf
from pyroflows import plot_fit, plot_posteriors
from pyroflows.diagnostics.plots import _kde

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("arviz")
    pytest.importorskip("matplotlib")

pytestmark = pytest.mark.arviz


def draws(num_samples=400, seed=0, size=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        "mu": torch.randn(num_samples, generator=generator),
        "tau": torch.randn(num_samples, generator=generator).exp(),
        "theta": torch.randn(num_samples, size, generator=generator),
    }


def far_draws():
    return {"theta": 3 + torch.randn(500, 2, generator=torch.Generator().manual_seed(3))}


FITS = {"mean field": draws(), "nsf": draws(1000, 1), "nuts": draws(77, 2)}


def saved(figure, tmp_path):
    path = tmp_path / "figure.png"
    figure.savefig(path, dpi=50)
    return path.stat().st_size > 1000


@pytest.mark.parametrize("kind", ["density", "forest", "pair"])
def test_every_fit_is_drawn_and_named(kind, tmp_path):
    figure = plot_posteriors(FITS, kind=kind)
    assert saved(figure, tmp_path)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(FITS)
    colors = {handle.get_color() for handle in legend.get_lines()}
    assert len(colors) == 3
    if kind == "density":
        assert [a.get_title() for a in figure.axes] == [
            "mu",
            "tau",
            "theta[0]",
            "theta[1]",
            "theta[2]",
        ]
    for axes in figure.axes:
        drawn = {line.get_color() for line in axes.lines}
        drawn |= {line.get_markeredgecolor() for line in axes.lines}
        assert drawn >= colors


@pytest.mark.parametrize("kind", ["density", "forest", "pair"])
def test_no_text_is_cut_off_or_overlaps_the_legend(kind):
    figure = plot_posteriors(FITS, kind=kind)
    figure.draw_without_rendering()
    page = figure.bbox
    legend = figure.legends[0].get_window_extent()
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1
        assert box.y1 <= legend.y0 + 1
    assert legend.x0 >= page.x0
    assert legend.x1 <= page.x1


def test_pyplot_is_left_alone():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    for kind in ("density", "forest", "pair"):
        plot_posteriors(FITS, kind=kind)
    assert plt.get_fignums() == before


def test_labels_come_from_coords():
    import pyro
    import pyro.distributions as dist

    from pyroflows import to_inference_data

    def model():
        with pyro.plate("school", 2):
            pyro.sample("theta", dist.Normal(0.0, 1.0))

    coords = {"school": ["A", "B"]}
    fit = to_inference_data(model, model, num_samples=50, seed=0, coords=coords)
    figure = plot_posteriors({"fit": fit, "nuts": {"theta": torch.randn(30, 2)}})
    assert [axes.get_title() for axes in figure.axes] == ["theta[A]", "theta[B]"]


def test_var_names_choose_and_order():
    figure = plot_posteriors(FITS, var_names=["tau", "mu"])
    assert [axes.get_title() for axes in figure.axes] == ["tau", "mu"]


@pytest.mark.parametrize(("kind", "limit"), [("density", 40), ("forest", 120), ("pair", 8)])
def test_too_many_coordinates_say_so(kind, limit):
    with pytest.warns(UserWarning, match=f"the first {limit} of 150 coordinates"):
        plot_posteriors({"fit": {"x": torch.randn(20, 150)}}, kind=kind)


def test_max_draws_thins_the_dots():
    figure = plot_posteriors({"fit": draws(5000)}, ["mu", "tau"], kind="pair", max_draws=100)
    (dots,) = figure.axes[1].lines
    assert len(dots.get_xdata()) == 100


@pytest.mark.parametrize("values", [[1.0] * 50, [math.nan] * 50, [0.0] * 49 + [math.inf], [1.0]])
def test_degenerate_draws_are_drawn_without_warning(values, tmp_path):
    fits = {"odd": {"x": torch.tensor(values)}, "normal": {"x": torch.randn(40)}}
    assert saved(plot_posteriors(fits), tmp_path)
    assert saved(plot_posteriors({"odd": fits["odd"]}), tmp_path)


def test_heavy_tails_do_not_flatten_the_rest():
    cauchy = torch.tan(
        math.pi * (torch.rand(4000, generator=torch.Generator().manual_seed(0)) - 0.5)
    )
    figure = plot_posteriors({"cauchy": {"x": cauchy}})
    low, high = figure.axes[0].get_xlim()
    assert high - low < 500


@pytest.mark.parametrize("shift", [0.0, 5e4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_density_is_that_of_the_draws(shift, scale):
    sample = shift + scale * np.random.default_rng(0).normal(size=20_000)
    x, y = _kde(sample, shift - 4 * scale, shift + 4 * scale)
    z = (x - shift) / scale
    expected = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    assert np.abs(y * scale - expected).max() < 0.03


def test_density_does_not_leak_over_an_edge():
    sample = np.random.default_rng(0).exponential(size=20_000)
    _, y = _kde(sample, 0.0, 8.0)
    assert y[1] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("kind", "said"), [("density", "sd)"), ("forest", "sd)"), ("pair", "C2ST")]
)
def test_names_tell_the_distance_from_a_reference(kind, said):
    fits = {"near": draws(500, 1, 2), "far": far_draws(), "nuts": draws(500, 2, 2)}
    figure = plot_posteriors(fits, ["theta"], kind=kind, reference="nuts")
    near, far, truth = (text.get_text() for text in figure.legends[0].get_texts())
    assert truth == "nuts (reference)"
    assert said in near
    number = {name: float(re.search(r"(\d\.\d+)", name).group(1)) for name in (near, far)}
    assert number[far] > (0.9 if kind == "pair" else 2)
    assert number[near] < (0.6 if kind == "pair" else 0.3)
    with pytest.raises(ValueError, match="expected a reference among"):
        plot_posteriors(fits, ["theta"], kind=kind, reference="none")


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"kind among \['density', 'forest', 'pair'\], got 'kde'"):
        plot_posteriors(FITS, kind="kde")
    with pytest.raises(ValueError, match=r"expected a mapping of name to draws.*got dict, empty"):
        plot_posteriors({})
    with pytest.raises(ValueError, match=r"max_draws of 1 or more, got 0"):
        plot_posteriors(FITS, max_draws=0)
    with pytest.raises(ValueError, match=r"'mean field' has no variables \['nu'\]"):
        plot_posteriors(FITS, ["nu"])
    with pytest.raises(ValueError, match="'theta' differs between fits"):
        plot_posteriors({"a": draws(), "b": draws(size=2)})
    with pytest.raises(ValueError, match="kind 'pair' expects two coordinates"):
        plot_posteriors(FITS, ["mu"], kind="pair")
    with pytest.raises(TypeError, match="'a': expected InferenceData"):
        plot_posteriors({"a": 1})


# The course of a fit


def fitted(losses, log_z=None):
    report = None if log_z is None else SimpleNamespace(log_z=log_z, log_z_se=0.01)
    return SimpleNamespace(losses=losses, diagnostics=report)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000])
@pytest.mark.parametrize("log_z", [None, -9.9, -math.inf])
def test_course_of_a_fit(num_steps, log_z, tmp_path):
    noise = np.random.default_rng(0).normal(size=num_steps)
    losses = 10 + 1e4 * np.exp(-np.arange(num_steps) / 20) + 0.1 * noise
    figure = plot_fit(fitted(list(losses), log_z))
    assert saved(figure, tmp_path)
    (axes,) = figure.axes
    assert axes.get_ylabel() == "ELBO [nat]"
    low, high = axes.get_ylim()
    assert low < -losses[-1] < high
    if num_steps == 1000:
        assert high - low < 20
    if log_z == -9.9:
        assert low < log_z < high


def test_learning_rate_and_events_are_drawn_and_named(tmp_path):
    fit = fitted(list(10 + 1 / np.arange(1, 101)), -9.9)
    fit.learning_rates = [0.01] * 70 + [0.001] * 30
    fit.events, fit.stop_reason = ((20, "race of step sizes: x 3 wins"),), "converged"
    figure = plot_fit(fit)
    assert saved(figure, tmp_path)
    bound, rates = figure.axes
    np.testing.assert_allclose(rates.lines[0].get_ydata(), fit.learning_rates)
    assert [line.get_xdata()[0] for line in bound.lines[-2:]] == [20, 100]
    told = rates.get_xlabel()
    assert "1  step 20: race of step sizes: x 3 wins" in told
    assert "2  step 100: stopped: converged" in told


def test_a_fit_tells_its_race_and_where_its_rate_fell():
    def bent(x):
        return -x[..., 0].square() - (x[..., 1] - x[..., 0].square()).square()

    target = pf.energy_model(bent, dim=2)
    fit = pf.fit_guide(
        target, pf.AutoFlow(target, "nsf"), num_steps=60, num_particles=64, seed=0,
        progress_bar=False, num_diagnostic_samples=0,
    )  # fmt: skip
    ((step, name),) = fit.events
    assert name == "the learning rate begins to fall"
    assert fit.learning_rates[step] == max(fit.learning_rates)
    assert (np.diff(fit.learning_rates[step:]) < 0).all()


def test_skipped_steps_are_left_out(tmp_path):
    figure = plot_fit(fitted([3.0, math.nan, math.inf, 1.0]))
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 4]


def test_fit_without_losses_is_refused():
    with pytest.raises(TypeError, match="expected what fit_guide returned, got dict"):
        plot_fit({})
    with pytest.raises(ValueError, match="expected a finite loss, got none in 1 steps"):
        plot_fit(fitted([math.nan]))
