"""Named flows: recipes that compose bijectors, one group a file, and their registry.

A recipe is any callable ``(dim, *, context_dim=0, **options) -> Bijector``: a function, a
partial, or a bijector class. Pyro's own ``AutoNormalizingFlow`` accepts one too.
"""

from .autoregressions import iaf, maf, nsf
from .blocks import bnaf
from .circular import ncsf
from .continuous import cnf
from .couplings import nice, nsf_coupling, realnvp
from .glow import glow
from .hybrid import hybrid
from .linear import affine, diagonal
from .neural import gf, naf, unaf
from .polynomials import bpf, sospf
from .registry import Flow, available_flows, build_flow, register_flow
from .residual import residual
from .ridges import planar, radial, sylvester
from .triangular import triangular

__all__ = [
    "Flow",
    "affine",
    "available_flows",
    "bnaf",
    "bpf",
    "build_flow",
    "cnf",
    "diagonal",
    "gf",
    "glow",
    "hybrid",
    "iaf",
    "maf",
    "naf",
    "ncsf",
    "nice",
    "nsf",
    "nsf_coupling",
    "planar",
    "radial",
    "realnvp",
    "register_flow",
    "residual",
    "sospf",
    "sylvester",
    "triangular",
    "unaf",
]
