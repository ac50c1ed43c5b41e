"""The service is held to what it says of itself: requests drawn from its OpenAPI description, with pictures, with broken pictures
and with anything at all as their bodies, and with what the description does not allow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from needs import needs
from odd_pictures import SMOOTH, encode

from adabm_kernels.serving import Limits, create_app

pytestmark = [needs("serve"), needs("schemathesis")]

KINDS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A small picture, whole, cut, or with bytes that were changed; or any bytes."""
    kind = draw(st.sampled_from(KINDS))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    data = encode(np.ascontiguousarray(SMOOTH[:height, :width]), kind)
    change = draw(st.sampled_from(("whole", "whole", "cut", "changed", "any")))
    if change == "cut":
        return data[: draw(st.integers(0, len(data) - 1))]
    if change == "changed":
        broken = bytearray(data)
        for place, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=8)):
            broken[place] = value
        return bytes(broken)
    return draw(st.binary(max_size=300)) if change == "any" else data


@pytest.fixture(scope="module")
def described() -> Iterator[tuple[Any, Any]]:
    """The application and its description as schemathesis reads it."""
    import schemathesis
    from fastapi.testclient import TestClient
    from schemathesis.specs.openapi import media_types

    app = create_app(FakeModel(), limits=Limits(max_pixels=4000, max_body=20_000))
    with TestClient(app):
        kinds = app.openapi()["paths"]["/upscale"]["post"]["requestBody"]["content"]
        for kind in kinds:
            schemathesis.openapi.media_type(kind, bodies())
        yield app, schemathesis.openapi.from_asgi("/openapi.json", app)
        media_types.unregister_all()


def hold(described: tuple[Any, Any], examples: int) -> None:
    import schemathesis
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi import checks

    _, schema = described
    held = [
        schemathesis.checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.unsupported_method,
        checks.negative_data_rejection,
    ]
    for operation in (result.ok() for result in schema.get_all_operations()):
        takes = len(list(operation.query))  # where an operation takes nothing, nothing can be wrong
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if takes else (GenerationMode.POSITIVE,):
            strategy = operation.as_strategy(generation_mode=mode)

            @settings(
                max_examples=examples if takes else 1,
                deadline=None,
                database=None,
                derandomize=True,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy)
            def run(case: Any) -> None:
                case.call_and_validate(checks=held)

            run()


def test_what_is_drawn_from_the_description_is_answered_as_it_says(described: tuple[Any, Any]) -> None:
    hold(described, 25)


@pytest.mark.slow
def test_much_that_is_drawn_from_the_description(described: tuple[Any, Any]) -> None:
    hold(described, 1000)
