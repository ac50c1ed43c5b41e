"""`adabm completion`: completion of commands and options in a shell."""

from __future__ import annotations

import argparse

from .common import FAILED, CommandError

SUMMARY = "print what makes a shell complete adabm's options"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="shell to write the completion for")


def execute(args: argparse.Namespace) -> None:
    """Print the completion script of a shell: `adabm completion bash > ~/.local/share/bash-completion/completions/adabm`."""
    try:
        import shtab
    except ImportError as error:
        raise CommandError("completion needs the package shtab: pip install shtab", FAILED) from error
    print(shtab.complete(args.parser, args.shell))
