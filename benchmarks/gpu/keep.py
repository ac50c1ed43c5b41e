"""The common part of scripts that measure a card and store the figures: their options, and the table that the figures go into."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pretend


def main(description: str, package: Path, user: Path, tune: Callable[[Path], None]) -> None:
    """Runs `tune` with the table to which it adds what it measures: the user's or, with --package, the package's."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", action="store_true", help="into the table that comes with the package")
    pretend.asked(parser)
    args = parser.parse_args()
    path = package if args.package and not args.dry_run else user
    tune(path)
    print("dry run: nothing is kept" if args.dry_run else f"written to {path}")
