"""A short run of every fuzzer, the same inputs each time. The long one is `make fuzz`."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from small import one_thread  # noqa: F401
from targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_are_read_or_refused(name: str) -> None:
    target = TARGETS[name]()
    bounded = settings(
        max_examples=target.examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    bounded(given(target.inputs)(target.check))()
