"""How the documentation is built: ``python -m sphinx -W docs docs/_build``."""

import sys
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from flow_table import flow_gallery, flow_table
from page_figures import make_figures

import pyroflows

project = "pyroflows"
author = "the pyroflows authors"
release = version = pyroflows.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pyroflows {release}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80


class FlowTable(SphinxDirective):
    """The registered flows and what they cost, counted in the code while the page is built."""

    def run(self):
        return self.parse_text_to_nodes(flow_table())


class FlowGallery(SphinxDirective):
    """The pictures of the registered flows, made by ``examples/gallery.py``."""

    def run(self):
        return self.parse_text_to_nodes(flow_gallery(), allow_section_headings=True)


def setup(app):
    app.connect("builder-inited", lambda app: make_figures(Path(app.srcdir)))
    app.add_directive("flow-table", FlowTable)
    app.add_directive("flow-gallery", FlowGallery)
