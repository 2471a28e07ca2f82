"""The one table of bijectors that the laws run over.

What belongs to every family is here. A family adds its lines in a file of ``tests/families``.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pkgutil import iter_modules

import torch

from pyroflows import Bijector, Compose, Inverse, available_flows, build_flow
from pyroflows.bijectors import (
    Autoregressive,
    Coupling,
    Elementwise,
    FullAffine,
    Householder,
    LocScale,
    LowRankAffine,
    LULinear,
    Permutation,
)
from pyroflows.networks import Conditioner
from pyroflows.transformers import Additive, Affine, RationalQuadraticSpline
from tests import families
from tests.case import CONTEXT_DIM, HIDDEN, Case

TRANSFORMERS = {
    "additive": Additive(),
    "affine": Affine(),
    "spline": RationalQuadraticSpline(num_bins=4, bound=3.0),
}
BUILT_IN = available_flows()
PLAIN_FLOWS = ("affine", "diagonal", "iaf", "maf", "nice", "nsf", "nsf_coupling", "realnvp")
FAMILIES = [
    import_module(f"tests.families.{found.name}") for found in iter_modules(families.__path__)
]


class Bend(Bijector):
    r"""A map without an inverse in closed form, :math:`y = x + \frac12 \tanh(A x)`, A small."""

    def __init__(self, dim: int, *, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim=context_dim)
        self.matrix = Conditioner(0, (dim, dim), context_dim=context_dim, hidden_dims=HIDDEN)

    def forward_and_log_det(self, x, context=None):
        raw = self.matrix(None, context)
        matrix = raw / (1 + raw.square().sum((-2, -1), keepdim=True)).sqrt()
        h = torch.tanh((matrix @ x[..., None])[..., 0])
        eye = torch.eye(self.dim, dtype=x.dtype, device=x.device)
        jacobian = eye + 0.5 * (1 - h.square())[..., None] * matrix
        return x + 0.5 * h, torch.linalg.slogdet(jacobian).logabsdet


def _anchored(build: Callable[..., Bijector], dim: int, **options: int) -> Bijector:
    """A linear map that was set to some location and scale."""
    bijector = build(dim, **options)
    loc, scale = torch.linspace(-2, 3, dim), torch.linspace(0.5, 2, dim)
    if isinstance(bijector, LocScale):
        bijector.set_(loc, scale)
    elif isinstance(bijector, FullAffine):
        bijector.set_(loc, torch.ones(dim, dim).tril(-1) + scale.diag())
    else:
        basis = torch.linalg.qr(torch.cos(torch.arange(dim * bijector.rank) + 1.0).view(dim, -1)).Q
        bijector.set_(loc, scale, basis, torch.linspace(-1, 1, bijector.rank))
    return bijector


def _low_rank(dim: int, **options: int) -> Bijector:
    return LowRankAffine(dim, min(2, dim), **options)


def _custom_mask(dim: int, **options: object) -> Bijector:
    return Coupling(
        dim, mask=torch.arange(dim, device="cpu") != dim // 2 if dim > 1 else "odd", **options
    )


def _ordered(dim: int, **options: object) -> Bijector:
    return Autoregressive(dim, order=[*range(1, dim), 0], **options)


def _composed(dim: int, **options: object) -> Bijector:
    return Compose(
        Autoregressive(dim, hidden_dims=HIDDEN, **options).inv,
        Permutation(list(range(dim))[::-1]),
        Compose(Coupling(dim, hidden_dims=HIDDEN), LULinear(dim)),
    )


def _families(c: int) -> dict[str, Case]:
    """Every family, free (c = 0) or conditional."""
    cases: dict[str, Callable[..., Bijector]] = {"bend": Bend}
    for structure in (Elementwise, Coupling, Autoregressive):
        for name, transformer in TRANSFORMERS.items():
            build = partial(structure, transformer=transformer, hidden_dims=HIDDEN)
            cases[f"{structure.__name__.lower()}-{name}"] = build
    for name in ("first_half", "odd", "even"):
        cases[f"coupling-{name}"] = partial(Coupling, mask=name, hidden_dims=HIDDEN)
    deep = {"hidden_dims": (8, 8, 8), "residual": True, "activation": "tanh"}
    spline = {"transformer": TRANSFORMERS["spline"], "hidden_dims": HIDDEN}
    cases |= {
        "coupling-mask": partial(_custom_mask, **spline),
        "coupling-residual": partial(Coupling, **deep),
        "autoregressive-order": partial(_ordered, **spline),
        "autoregressive-residual": partial(_ordered, **deep),
        "autoregressive-silu": partial(Autoregressive, hidden_dims=(8,), activation="silu"),
        "autoregressive-inverse": lambda dim, **o: Inverse(Autoregressive(dim, **spline, **o)),
        "householder": partial(Householder, num_reflections=4, hidden_dims=HIDDEN),
        "lu_linear": partial(LULinear, hidden_dims=HIDDEN),
        "compose": _composed,
    }
    for name, build in {
        "loc_scale": partial(LocScale, hidden_dims=HIDDEN),
        "full_affine": partial(FullAffine, hidden_dims=HIDDEN),
        "low_rank_affine": partial(_low_rank, hidden_dims=HIDDEN),
    }.items():
        cases |= {name: build, f"{name}-anchored": partial(_anchored, build)}
    for flow in PLAIN_FLOWS:
        options = {"hidden_dims": HIDDEN}
        if "nsf" in flow:
            options |= {"num_bins": 4, "bound": 3.0}
        cases[f"flow:{flow}"] = partial(build_flow, flow, **options)
    for module in FAMILIES:
        cases |= module.builders()
    return {
        name: Case(partial(build, context_dim=c), c, tolerances=_tolerances(name))
        for name, build in cases.items()
    }


def _tolerances(name: str) -> dict[str, float]:
    """What families state for a case, by law: ``TOLERANCES[law][name] = (tolerance, reason)``."""
    stated = [getattr(module, "TOLERANCES", {}) for module in FAMILIES]
    return {law: by[name][0] for by_law in stated for law, by in by_law.items() if name in by}


CASES = {
    **_families(0),
    "permutation": Case(lambda dim: Permutation([*range(1, dim), 0])),
    **{f"{name}|context": case for name, case in _families(CONTEXT_DIM).items()},
}
SMALL = ("elementwise-spline", "coupling-affine", "autoregressive-spline", "bend", "full_affine")
