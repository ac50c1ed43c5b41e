"""A short run of every fuzzer, the same inputs each time, and all inputs that are kept. The long one is `make fuzz`."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from mutations import PARSERS, changed
from small import one_thread  # noqa: F401
from targets import TARGETS

INPUTS = 150  # of each parser


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_are_read_or_refused(name: str) -> None:
    target = TARGETS[name]()
    bounded = settings(max_examples=target.examples, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    bounded(given(target.inputs)(target.check))()


@pytest.mark.parametrize("name", PARSERS)
def test_changed_bytes_are_read_or_refused(name: str) -> None:
    parser, random = PARSERS[name](), Random(0)
    for data in parser.seeds:  # with those that are kept
        parser.check(data)
    for _ in range(INPUTS):
        data = changed(random, parser)
        parser.check(data)


def test_a_parser_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that are too long, errors of another kind, and memory."""
    from adabm_kernels.commands import streams

    parser, header = PARSERS["y4m_streams"](), b"YUV4MPEG2 W4 H2 C" + b"x" * 3000 + b"\n"
    parser.check(header)
    for raised in (ValueError("x" * 3000), KeyError("C")):
        monkeypatch.setattr(streams, "_shown", lambda word, raised=raised: (_ for _ in ()).throw(raised))
        with pytest.raises((AssertionError, KeyError)):
            parser.check(header)
    monkeypatch.setattr(streams, "_shown", lambda word: str(len(bytearray(400 << 20).replace(b"\0", b"\1"))))
    with pytest.raises(AssertionError, match="it took [0-9]+ MB"):
        parser.check(header)


def test_the_suite_draws_the_same_every_time() -> None:
    assert settings.default is not None and settings.default.derandomize
