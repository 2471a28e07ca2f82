"""Inference: objectives, fitting, importance weights."""

from .objectives import PathELBO

__all__ = ["PathELBO"]
