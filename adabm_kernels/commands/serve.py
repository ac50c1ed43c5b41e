"""`adabm serve`: upscales pictures for clients over HTTP."""

from __future__ import annotations

import argparse
import warnings

from . import arguments
from .common import BAD_INPUT, FAILED, stage
from .loading import load_network

SUMMARY = "upscale pictures as a service over HTTP"
_MOST_SECONDS = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--host", default="127.0.0.1", type=_host, help="address to listen on; 0.0.0.0 for all (default: %(default)s, this machine)"
    )
    add("--port", metavar="N", type=arguments.integer(0, 65535), default=8000, help="0 for any free one (default: %(default)s)")
    arguments.add_model(parser, " or a converted model's file")
    arguments.add_windows(parser)
    parser.set_defaults(tta=False)
    limits = parser.add_argument_group("what clients may ask for").add_argument
    limits(
        "--queue",
        metavar="N",
        type=arguments.integer(1),
        default=16,
        help="pictures under way at once, from being received to being sent; further ones are answered 429 (default: %(default)s)",
    )
    limits(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=60.0,
        help="for a body to come, for its picture to be done and for the result to be taken, each (default: 60)",
    )
    limits(
        "--max-pixels",
        metavar="N",
        type=arguments.integer(1),
        default=1 << 22,
        help="refuse larger pictures (default: %(default)s)",
    )
    limits("--max-body", metavar="SIZE", type=arguments.memory, default="32M", help="refuse larger bodies (default: %(default)s)")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    loudness.add_argument("-v", "--verbose", action="store_true", help="print a line for each request")


def execute(args: argparse.Namespace) -> None:
    """Upscale pictures for clients over HTTP: POST a picture to /upscale, get the picture that `adabm upscale` would write. SIGTERM
    and Ctrl-C stop it after the pictures that it has accepted. Needs pip install 'adabm-kernels[serve]'."""
    from ..serving.limits import Limits, needing_extra

    try:
        with needing_extra():
            from ..serving import server
            from ..serving.app import application
            from ..serving.service import Service
    except ImportError as error:
        with stage(FAILED):
            raise RuntimeError(str(error)) from error
    with stage(BAD_INPUT):
        limits = Limits(args.queue, args.timeout, args.max_pixels, args.max_body)
        network, settings = load_network(args)
    with stage(FAILED), server.bind(args.host, args.port) as sock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong with a picture is told to its client
        service = Service(network, limits)
        loudness = "error" if args.quiet else "info" if args.verbose else "warning"
        server.serve(application(service), service, sock, f"{settings['model']} ({settings['backend']})", loudness)


def _host(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must be an address such as 127.0.0.1, got ''")
    return text


def _seconds(text: str) -> float:
    value = arguments.number(0, _MOST_SECONDS)(text)
    if not value:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most {_MOST_SECONDS}, got '{text}'")
    return value
