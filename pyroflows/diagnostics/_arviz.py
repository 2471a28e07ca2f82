"""The one place that knows the two majors of ArviZ: InferenceData in 0.x, DataTree in 1.x."""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["build", "get_group", "has_groups", "major", "require"]


def require() -> None:
    """Import ArviZ, or say how to install it.

    Raises:
        ImportError: if ArviZ is not installed.
    """
    try:
        with warnings.catch_warnings():
            # ArviZ 0.23 announces the next major on every first import.
            warnings.simplefilter("ignore", FutureWarning)
            import arviz  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "pyroflows: comparison, plots and conversion need ArviZ; install it with "
            "pip install pyroflows[arviz]"
        ) from error


def major() -> int:
    """Return the major version of the ArviZ installed."""
    return int(importlib.metadata.version("arviz").split(".")[0])


def build(groups: dict[str, xr.Dataset], attrs: dict[str, Any]) -> Any:
    """Put groups together: an ``InferenceData`` under ArviZ 0.x, a ``DataTree`` under 1.x."""
    require()
    if major() == 0:
        import arviz

        return arviz.InferenceData(attrs=attrs, warn_on_custom_groups=False, **groups)
    import xarray as xr

    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **groups})


def has_groups(data: object) -> bool:
    """Tell an ``InferenceData`` or a ``DataTree`` from anything else."""
    return hasattr(data, "to_netcdf") and (hasattr(data, "children") or hasattr(data, "_groups"))


def get_group(data: Any, name: str) -> xr.Dataset | None:
    """Return one group as a dataset, or None where there is none."""
    if hasattr(data, "children"):
        return data.children[name].to_dataset() if name in data.children else None
    return getattr(data, name) if name in data.groups() else None
