"""AutoFlow: a guide whose posterior over all latents is one flow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from pyro.nn.module import pyro_method
from torch import Tensor

from ..bases import Base
from ..bijector import Bijector
from ..flows import Flow
from ..log_density import LogDensity
from .gaussians import Start
from .noise import Recipe, center_of, distribution_of, make_base
from .outer import build_bijector, initialise
from .posterior import FlowDistribution
from .precision import in_double_precision, runs_in_double
from .prototype import (
    check_data,
    init_to_center,
    or_center,
    read_latents,
    signature_of,
    takes_no_arguments,
)
from .request import check_request
from .store import claim_params

__all__ = ["AutoFlow"]


class AutoFlow(AutoContinuous):
    r"""A guide whose posterior over all latents is one flow.

    The posterior is the law of

    .. math:: z = T(\mu + A f(\epsilon)), \qquad \epsilon \sim N(0, I) \text{ or another base},

    with a flow :math:`f`, an outer affine map that starts at a mode of the model with the
    curvature there, and :math:`T` the bijection onto the supports of the sites. It is an
    ``AutoContinuous``: it works with ``SVI`` and every ``ELBO``, ``Predictive`` and
    :class:`~pyroflows.NeuTraReparam`.

    Parameters exist from the first call on, or from construction where ``model_args`` are given
    (or the model takes none); then ``guide.parameters()`` can go to a torch optimizer, and
    ``load_state_dict`` works, before any call.

    Args:
        model: A Pyro model with continuous latents; discrete ones must be enumerated.
        flow: Name of a registered flow, or a recipe ``(dim, *, context_dim=0) -> Bijector``.
            ``"auto"`` is ``"hybrid"``, of which ``fit_guide`` takes as much as pays.
        base: What the flow starts from: a name out of :func:`~pyroflows.available_bases`, a recipe
            ``(dim, *, context_dim=0) -> Base``, or a :class:`~pyroflows.Base`, which is trained
            with the guide. Its vectors must be real; but with a flow of angles, such as ``"ncsf"``,
            these start uniform on their circle by default, and there is no outer map.
        outer: The outer affine map: ``"full"`` (Cholesky), ``"diagonal"``, ``"low_rank"``, ``None``
            for none, or ``"auto"``: full up to 128 dimensions, low rank above.
        init: ``"auto"`` climbs to a mode and takes the curvature; ``"point"`` starts at the point
            of ``init_loc_fn``, ``init_scale`` wide.
        init_loc_fn: Where to climb or start from, per site; prior medians unless given.
        init_scale: Starting scale on unconstrained coordinates for ``init="point"``.
        model_args: Positional arguments of the model, to make the parameters now.
        model_kwargs: Keyword arguments of the model.
        options: Passed to the recipe: ``num_layers``, ``hidden_dims``, ``num_bins``, ...

    Attributes:
        report: What the initialisation did, in words.
        modes: The modes that the initialisation climbed to, where they are two or more, each with
            ``loc``, ``scale`` and ``elbo``, an estimate of its log mass, on unconstrained
            coordinates in float64. :func:`~pyroflows.importance_diagnostics` looks for them.

    Raises:
        TypeError: For options that the flow does not take, or arguments that the model does not.
        ValueError: For names that do not exist, and for models that one flow cannot hold: no
            latents, discrete sites not enumerated, latents in a subsampled plate.

    Example:
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0])
        >>> guide = AutoFlow(model, "nsf", model_args=(y,))
        >>> guide.log_prob({"mu": torch.zeros(5)}).shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: Callable,
        flow: str | Flow = "auto",
        *,
        base: str | Base | Recipe = "normal",
        outer: str | None = "auto",
        init: str = "auto",
        init_loc_fn: Callable | None = None,
        init_scale: float = 0.1,
        model_args: tuple | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **options,
    ) -> None:
        recipe = {"flow": "hybrid" if flow == "auto" else flow, "outer": outer, "options": options}
        start = {"init": init, "init_scale": init_scale, "given": init_loc_fn is not None}
        check_request(model, recipe, base, start, model_args, model_kwargs)
        super().__init__(model, init_loc_fn=or_center(init_loc_fn or init_to_center))
        self._raw_model = (model,)  # a tuple, so that it is not registered as a submodule
        self._recipe = recipe
        self._base_recipe = (base,)  # a tuple, for the same reason
        self._init = start
        self._pending: list[Callable] = []
        self._signatures: set[tuple] = set()
        self.latents = None
        self.modes: tuple[Start, ...] = ()
        self.report = "not initialised: call the guide, or pass model_args="
        if model_args is not None or model_kwargs is not None or takes_no_arguments(model):
            with poutine.block():
                self._setup_prototype(*(model_args or ()), **(model_kwargs or {}))

    # -- structure and parameters -------------------------------------------------------------

    def _setup_prototype(self, *args, **kwargs) -> None:
        trace = poutine.block(poutine.trace(self.model).get_trace)(*args, **kwargs)
        trace.compute_log_prob()
        self.latents = read_latents(trace, type(self).__name__)
        self._first_signature = signature_of(args, kwargs)
        self._signatures = {self._first_signature}
        is_double = in_double_precision(trace)
        self._set_pyro_structure(trace)
        loc = self._init_loc()
        log_density = LogDensity(self._raw_model[0], self.latents, args, kwargs)
        dtype = torch.float64 if is_double and runs_in_double(loc, log_density) else loc.dtype
        self.register_buffer("_origin", torch.zeros_like(loc, dtype=dtype), persistent=False)
        bijector = build_bijector(self.latents, **self._recipe).to(self._origin)
        base = make_base(self._base_recipe[0], self._origin, bijector, self.latents)
        with poutine.block(), torch.no_grad():
            self.report, self.modes = initialise(bijector, log_density, loc.to(dtype), **self._init)
        self.bijector, self.base = bijector, base
        for fn in self._pending:
            self._apply(fn)
        self._pending = []

    def _init_loc(self) -> Tensor:
        nodes = self.prototype_trace.nodes
        values = {name: nodes[name]["value"].detach() for name in self.latents.sites}
        return self.latents.unconstrain(values)

    def _set_pyro_structure(self, trace: poutine.Trace) -> None:
        """Fill in what ``AutoContinuous`` and its users read."""
        for name in [n for n in trace.nodes if n not in self.latents.sites]:
            trace.remove_node(name)
        self.prototype_trace = trace
        if self.master is not None:
            self.master()._check_prototype(trace)
        stacks = {name: trace.nodes[name]["cond_indep_stack"] for name in self.latents.sites}
        self._cond_indep_stacks = stacks
        self._prototype_frames = {f.name: f for stack in stacks.values() for f in stack}
        self._unconstrained_shapes = {
            name: site.unconstrained_shape for name, site in self.latents.sites.items()
        }
        self.latent_dim = self.latents.dim

    def _prepare(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Make the parameters at the first call; at later ones, refuse data that do not fit."""
        if self.latents is None:
            self._setup_prototype(*args, **kwargs)
        signature = signature_of(args, kwargs)
        if signature in self._signatures:
            return
        check_data(signature, self._first_signature, self._origin, type(self).__name__)
        if self._raw_model[0] is not None:
            log_density = self.log_density(*args, **kwargs)
            with poutine.block(), torch.no_grad(), torch.random.fork_rng(_cuda(self._origin)):
                log_density._single(self.median_latent())
        self._signatures.add(signature)

    def _require_setup(self) -> None:
        if self.latents is None:
            raise RuntimeError(
                f"{type(self).__name__} has no parameters yet, as it has not seen the model's "
                "shape: pass model_args= at construction, or call the guide once."
            )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the latents on unconstrained coordinates."""
        self._require_setup()
        return self._origin.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        self._require_setup()
        return self._origin.device

    # -- the posterior ------------------------------------------------------------------------

    def get_base_dist(self) -> dist.Distribution:
        """Return what the flow starts from: the standard normal unless ``base`` was given."""
        self._require_setup()
        return distribution_of(self._modules.get("base"), self._origin)

    def get_transform(self, *args, **kwargs) -> Bijector:
        """Return the flow with its outer affine map, onto unconstrained coordinates."""
        self._require_setup()
        return self._claimed_bijector()

    @pyro_method
    def get_posterior(self, *args, **kwargs) -> FlowDistribution:
        """Return the posterior over unconstrained coordinates, for one call."""
        self._require_setup()
        bijector, base = self._claimed_bijector(), self._modules.get("base")
        if base is not None:
            claim_params(f"{self._pyro_name}.base", base)
            base = self.base
        return FlowDistribution(bijector, self._origin, base=base)

    def unregistered_posterior(self) -> FlowDistribution:
        """Return the same distribution without telling Pyro's param store of its parameters."""
        base = self._modules.get("base")
        return FlowDistribution(self.unregistered_bijector(), self._origin, base=base)

    def unregistered_bijector(self) -> Bijector:
        self._require_setup()
        return self._modules["bijector"]

    def _claimed_bijector(self) -> Bijector:
        claim_params(f"{self._pyro_name}.bijector", self._modules["bijector"])
        return self.bijector

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draw the latents, as a Pyro guide of the model's arguments.

        Returns:
            Site values by name.
        """
        self._prepare(args, kwargs)
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result = {}
        for site, raw in self._unpack_latent(latent):
            name, event_dim = site["name"], site["fn"].event_dim
            delta = self._delta(name, raw, event_dim)
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                result[name] = pyro.sample(name, delta)
        return result

    def _delta(self, name: str, raw: Tensor, event_dim: int) -> dist.Delta:
        transform = self.latents.sites[name].transform
        value = transform(raw)
        if poutine.get_mask() is False:
            return dist.Delta(value, event_dim=event_dim)
        log_det = -transform.log_abs_det_jacobian(raw, value)
        extra = log_det.dim() - value.dim() + event_dim
        log_det = log_det.flatten(-extra).sum(-1) if extra > 0 else log_det
        return dist.Delta(value, log_density=log_det, event_dim=event_dim)

    def log_density(self, *args, **kwargs) -> LogDensity:
        """Return the model's log density on unconstrained coordinates, for these arguments."""
        self._require_setup()
        if self._raw_model[0] is None:
            raise RuntimeError(
                f"{type(self).__name__} was unpickled and has no model: build a new guide with the "
                "model and load this one's state_dict."
            )
        return LogDensity(self._raw_model[0], self.latents, args, kwargs)

    # -- what users read ----------------------------------------------------------------------

    def unpack(self, latent: Tensor) -> dict[str, Tensor]:
        """Return site values of unconstrained points ``(*batch, D)``: ``(*batch, *shape)`` each."""
        self._require_setup()
        return self.latents.constrain(latent, skip_jacobian=True)[0]

    def pack(self, sites: dict[str, Tensor]) -> Tensor:
        """Return the unconstrained points ``(*batch, D)`` of some site values."""
        self._require_setup()
        self.latents.check_values(sites, type(self).__name__)
        return self.latents.unconstrain({k: v.to(self._origin) for k, v in sites.items()})

    def log_prob(self, sites: dict[str, Tensor]) -> Tensor:
        r"""Score any point, drawn by this guide or not.

        .. math:: \log q(z) = \log q_u(u) - \log |\partial z / \partial u|, \qquad u = T^{-1}(z)

        Args:
            sites: Values by site name, shape ``(*batch, *site shape)`` each.

        Returns:
            Log densities on the constrained space, shape ``(*batch)``; minus infinity outside of
            a support.

        Raises:
            ValueError: If a site is missing, unknown or of the wrong shape.
        """
        self._require_setup()
        values = {name: torch.as_tensor(v).to(self._origin) for name, v in sites.items()}
        self.latents.check_values(values, type(self).__name__)
        inside, values = self._inside(values)
        u = self.latents.unconstrain(values)
        log_det = self.latents.constrain(u)[1]
        log_q = self.get_posterior().log_prob(u) - log_det
        return torch.where(inside, log_q, -torch.inf)

    def _inside(self, values: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Which points lie in every support, and the values with the others put at a center."""
        inside, safe = torch.ones((), dtype=torch.bool, device=self._origin.device), {}
        center = self.unpack(self._origin)
        for name, site in self.latents.sites.items():
            value = values[name]
            ok = site.support.check(value)
            batch = value.shape[: value.dim() - len(site.shape)]
            ok = ok.reshape(*batch, -1).all(-1)
            spread = ok.reshape(batch + (1,) * len(site.shape))
            safe[name] = torch.where(spread, value, center[name])
            inside = inside & ok
        return inside, safe

    @torch.no_grad()
    def median_latent(self) -> Tensor:
        """Return the image of the base's center on unconstrained coordinates, shape ``(D)``."""
        self._require_setup()
        center = center_of(self._modules.get("base"), self._origin)
        return self._modules["bijector"].forward_and_log_det(center)[0]

    @torch.no_grad()
    def quantiles(
        self,
        quantiles: Sequence[float] | Tensor,
        *args,
        num_samples: int = 4096,
        **kwargs,
    ) -> dict[str, Tensor]:
        """Return marginal quantiles of every site, estimated from draws.

        Args:
            quantiles: Probabilities in [0, 1], of shape ``(Q)``.
            args: Positional arguments of the model; needed only before the first call.
            num_samples: Number of draws.
            kwargs: Keyword arguments of the model.

        Returns:
            Quantiles by site name, shape ``(Q, *site shape)``.
        """
        with poutine.block():
            self._prepare(args, kwargs) if self.latents is None else None
            draws = self.unpack(self.get_posterior().rsample((num_samples,)))
        levels = torch.as_tensor(quantiles).to(self._origin)
        return {name: torch.quantile(value, levels, dim=0) for name, value in draws.items()}

    def median(self, *args, **kwargs) -> dict[str, Tensor]:
        """Return the marginal median of every site, estimated from draws."""
        return {name: q[0] for name, q in self.quantiles([0.5], *args, **kwargs).items()}

    # -- copies, files, devices ---------------------------------------------------------------

    def _apply(self, fn: Callable, recurse: bool = True) -> AutoFlow:
        """Move dtype or device; remembered for later where there are no parameters yet."""
        if self.latents is None:
            self._pending.append(fn)
            return super()._apply(fn, recurse)
        self.latents.move(fn)
        self._signatures = set()  # data that fitted before may not now
        return super()._apply(fn, recurse)

    def load_state_dict(self, *args, **kwargs) -> Any:
        """Load parameters; needs them to exist (``model_args=`` at construction)."""
        self._require_setup()
        return super().load_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the model, which may not be picklable; ``self`` is left as it is."""
        kept = self._model, self._raw_model, self.master
        try:
            state = dict(super().__getstate__())
        finally:
            self._model, self._raw_model, self.master = kept
        return {**state, "_model": (None,), "_raw_model": (None,), "master": None, "_pending": []}

    def __deepcopy__(self, memo: dict) -> AutoFlow:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        twin._model, twin._raw_model = self._model, self._raw_model
        twin._pending = list(self._pending)
        return twin


def _cuda(like: Tensor) -> list[torch.device]:
    return [like.device] if like.is_cuda else []
