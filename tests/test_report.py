"""The page of HTML on a fit, and the command line."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyroflows as pf
from pyroflows.__main__ import main
from pyroflows.diagnostics import _arviz

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FIGURES = [
    "Marginals",
    "Medians and intervals",
    "Pairs of mu, tau, eta[0], eta[1], eta[2]",
    "The course of the fit",
    "Importance weights and the tail fitted to them",
    "Data seen and data made anew",
    "Each observation and what is predicted",
]
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


@pytest.fixture(scope="module")
def fit():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = pf.AutoFlow(schools, "affine")
    return pf.fit_guide(
        schools, guide, model_args=(Y, SIGMA), num_steps=60, seed=0, progress_bar=False,
        num_diagnostic_samples=1000,
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(fit, tmp_path_factory):
    pytest.importorskip("arviz")
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert fit.report(path, num_samples=1000, seed=0) == str(path)
    return path


def shown(page):
    return re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,', page.read_text())


@pytest.mark.arviz
def test_every_figure_and_number_is_on_the_page(page, fit):
    text = page.read_text()
    assert shown(page) == FIGURES
    assert "not drawn" not in text
    assert f"<strong>{fit.diagnostics.verdict}</strong>" in text
    for said in ("log Z", "k-hat", "eta[7]", "elpd", "weighted mean", "torch", "AutoFlow"):
        assert said in text
    assert len(text.encode()) <= 3_000_000


@pytest.mark.arviz
def test_nothing_of_the_page_lies_elsewhere(page):
    text = page.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "<script" not in text


@pytest.mark.arviz
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium to look at the page")
def test_the_page_opens_in_a_browser_with_every_figure(page, tmp_path):
    looked_at = tmp_path / "report.html"
    count = (
        "<script>onload = () => { document.title = [...document.images].filter("
        "i => i.complete && i.naturalWidth > 100).length + ' figures' }</script>"
    )
    looked_at.write_text(page.read_text().replace("</body>", count + "</body>"))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", looked_at.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert f"<title>{len(FIGURES)} figures</title>" in done.stdout


@pytest.mark.arviz
def test_a_saved_fit_gives_the_same_page_from_the_shell(fit, tmp_path, capsys):
    pytest.importorskip("arviz")
    data = pf.to_inference_data(
        fit.guide, schools, model_args=(Y, SIGMA), fit=fit, num_samples=1000, seed=0
    )
    file = tmp_path / "saved_fit.nc"
    data.to_netcdf(str(file), engine="h5netcdf")
    assert main(["report", str(file)]) == 0
    assert str(tmp_path / "saved_fit.html") in capsys.readouterr().out
    assert shown(tmp_path / "saved_fit.html") == FIGURES
    assert (
        f"<strong>{fit.diagnostics.verdict}</strong>" in (tmp_path / "saved_fit.html").read_text()
    )


@pytest.mark.arviz
def test_what_cannot_be_drawn_says_why(tmp_path):
    pytest.importorskip("arviz")

    def energy():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("bend", -(x**2))

    data = pf.to_inference_data(pf.AutoFlow(energy, "affine"), energy, num_samples=100, seed=0)
    text = (tmp_path / "a.html").read_text() if pf.write_report(data, tmp_path / "a.html") else ""
    assert "New data" not in text
    assert shown(tmp_path / "a.html") == ["Marginals", FIGURES[4]]


@pytest.mark.arviz
def test_chains_have_a_page_without_a_verdict(tmp_path):
    pytest.importorskip("arviz")
    arviz_data = _arviz.build({"posterior": _draws()}, {"name": "<b>bold</b>"})
    pf.write_report(arviz_data, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "no verdict" in text
    assert "<b>bold" not in text


def _draws():
    import xarray as xr

    generator = torch.Generator().manual_seed(0)
    return xr.Dataset({"z": (("chain", "draw"), torch.randn(2, 100, generator=generator).numpy())})


@pytest.mark.arviz
def test_refusals(tmp_path, capsys):
    pytest.importorskip("arviz")
    with pytest.raises(TypeError, match="expected what to_inference_data returned, got dict"):
        pf.write_report({}, tmp_path / "a.html")
    empty = _arviz.build({"other": _draws()}, {})
    with pytest.raises(ValueError, match="expected a posterior group"):
        pf.write_report(empty, tmp_path / "a.html")
    with pytest.raises(ValueError, match="holds no model"):
        pf.GuideFit(None, [], [], 0.0, "converged", 1).report(tmp_path / "a.html")
    assert main(["report", str(tmp_path / "none.nc")]) == 2
    assert "there is no file" in capsys.readouterr().err
    (tmp_path / "text.nc").write_text("no data")
    assert main(["report", str(tmp_path / "text.nc")]) == 2
    assert "is no netCDF file of a fit" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()


def test_the_table_of_flows_in_the_shell(capsys):
    assert main(["flows"]) == 0
    out = capsys.readouterr().out
    for name in pf.available_flows():
        assert re.search(rf"^{name} ", out, re.MULTILINE)
    assert "to sample: 1 pass a layer; to score: 1 pass a layer, in D steps" in out


def test_the_command_line_is_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "pyroflows", "--help"], capture_output=True, text=True, check=True
    )
    assert "report" in done.stdout
    assert "flows" in done.stdout
