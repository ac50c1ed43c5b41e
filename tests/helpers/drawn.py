"""Convolution problems that hypothesis draws."""

from __future__ import annotations

from hypothesis import strategies as st
from problems import ConvProblem


@st.composite
def drawn_problems(draw: st.DrawFn) -> ConvProblem:
    """Any small problem."""
    shuffle = draw(st.sampled_from([1, 1, 2, 3, 4]))
    images = draw(st.integers(1, 3))
    bits = st.tuples(*[st.integers(2, 8)] * images)
    lower = draw(st.floats(-50, 50, width=32))
    return ConvProblem(
        "drawn",
        height=draw(st.integers(1, 12)),
        width=draw(st.integers(1, 40)),
        channels=draw(st.integers(1, 70)),
        outputs=draw(st.integers(1, 80 // shuffle**2)) * shuffle**2,
        kernel=draw(st.sampled_from([1, 3, 5, 9])),
        weight_bits=draw(st.integers(2, 8)),
        bits=draw(bits),
        out_bits=draw(bits),
        activation=draw(st.sampled_from(["none", "relu", "prelu"])),
        residual=draw(st.booleans()),
        shuffle=shuffle,
        lower=lower,
        upper=lower + draw(st.floats(0.125, 300, width=32)),
    )
