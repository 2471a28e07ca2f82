"""The command line: ``python -m pyroflows report saved_fit.nc``, ``python -m pyroflows flows``."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"pyroflows: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pyroflows", description="Look at fits.")
    commands = parser.add_subparsers(required=True, metavar="command")
    report = commands.add_parser("report", help="write a page of HTML on a saved fit")
    report.add_argument("file", type=Path, help="what to_inference_data(...).to_netcdf() wrote")
    report.add_argument("-o", "--output", type=Path, help="the page; the file with .html if not")
    report.set_defaults(run=_report)
    flows = commands.add_parser("flows", help="print the table of flows and what they cost")
    flows.set_defaults(run=_flows)
    return parser


def _report(args: argparse.Namespace) -> int:
    from .diagnostics.html_report import read_fit, write_report

    output = args.output or args.file.with_suffix(".html")
    if output.resolve() == args.file.resolve():
        raise ValueError(
            f"the page would take the place of the fit: give another --output {output}"
        )
    print(f"Wrote {write_report(read_fit(args.file), output)}")
    return 0


def _flows(_: argparse.Namespace) -> int:
    from .flows.costs import flow_costs

    costs = flow_costs()
    first = max(len(cost.name) for cost in costs)
    for cost in costs:
        for line in textwrap.wrap(cost.summary, 90):
            print(
                f"{cost.name if line == textwrap.wrap(cost.summary, 90)[0] else '':{first}}  {line}"
            )
        score = f"; to score: {cost.score}" if cost.score else ""
        print(f"{'':{first}}  to sample: {cost.sample}{score}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
