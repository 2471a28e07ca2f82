"""Pieces of one self-contained page of HTML."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["escape", "figure", "listing", "page", "section", "table"]

_DPI = 100
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; border-bottom: 1px solid #ddd; margin-top: 2.2rem; }
.verdict { border-left: .5rem solid #666; background: #f4f4f4; padding: .6rem 1rem; }
.verdict strong { font-size: 1.25rem; }
.usable { border-color: #009E73; } .reweight { border-color: #E69F00; }
.distrust { border-color: #D55E00; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .8rem .15rem 0; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; }
pre { background: #f7f7f7; padding: .8rem; overflow-x: auto; font-size: 13px; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption, .note { color: #666; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page; nothing in it comes from a network."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what is under it; nothing where there is nothing."""
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts) if any(parts) else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>\n"
        for row in rows
    )
    return f"<table>\n<tr>{head}</tr>\n{body}</table>"


def listing(text: str) -> str:
    """Text as it is."""
    return f"<pre>{escape(text)}</pre>" if text else ""


def figure(caption: str, draw: Callable[[], Figure]) -> str:
    """A figure within the page, with what was said while it was drawn; the reason if it was not."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            image = _png(draw())
        except (TypeError, ValueError, KeyError) as error:
            return f'<p class="note">{escape(caption)}: not drawn. {escape(str(error))}</p>'
    told = "".join(f"<br>{escape(str(w.message))}" for w in said if w.category is UserWarning)
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{image}">'
        f"<figcaption>{escape(caption)}{told}</figcaption></figure>"
    )


def _png(drawn: Figure) -> str:
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=_DPI)
    return base64.b64encode(file.getvalue()).decode()
