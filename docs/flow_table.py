"""The table and the gallery of registered flows, in Markdown."""

from pathlib import Path

from pyroflows import available_flows
from pyroflows.flows.costs import flow_costs, summary_of

HEADER = "| flow | what it is | to sample | to score |\n| --- | --- | --- | --- |\n"
PICTURES = Path(__file__).parent / "images" / "gallery"


def flow_table():
    """Return the table in Markdown, one row for each registered flow."""
    rows = (f"| `{c.name}` | {c.summary} | {c.sample} | {c.score} |\n" for c in flow_costs())
    return HEADER + "".join(rows)


def flow_gallery():
    """Return the pictures that there are in Markdown, each under its flow and what that is."""
    drawn = {path.stem for path in PICTURES.glob("*.png")}
    return "".join(
        f"### `{name}`\n\n{summary_of(name)}.\n\n![{name}](/images/gallery/{name}.png)\n\n"
        for name in available_flows()
        if name in drawn
    )
