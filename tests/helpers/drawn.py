"""Convolution problems that hypothesis draws."""

from __future__ import annotations

from hypothesis import strategies as st
from problems import ConvProblem

from adabm_kernels.quantize import Geometry


@st.composite
def drawn_problems(draw: st.DrawFn) -> ConvProblem:
    """Any small problem with a plain geometry."""
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


@st.composite
def drawn_geometries(draw: st.DrawFn) -> ConvProblem:
    """Any small problem whose geometry is not plain: with strides, dilation, groups, kernels of even size or any padding."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    shuffle, kernel = draw(st.sampled_from([1, 1, 1, 2])), (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    form = draw(st.sampled_from(["one", "groups", "depthwise"]))
    groups = 1 if form == "one" else draw(st.integers(2, 9 if form == "groups" else 70))
    channels = groups * (1 if form == "depthwise" else draw(st.integers(1, 20)))
    outputs = groups * draw(st.integers(1, 3 if form == "depthwise" else 24)) * shuffle**2
    bits = st.tuples(*[st.integers(2, 8)] * draw(st.integers(1, 2)))
    around = draw(st.sampled_from([None, *[st.tuples(*[st.integers(0, 6)] * count) for count in (2, 4)]]))
    geometry = Geometry(draw(pair), draw(pair), groups, None if around is None else draw(around))
    rows, columns = geometry.axes(*kernel)
    return ConvProblem(
        "drawn_geometry",
        height=draw(st.integers(max(1, rows.extent - rows.before - rows.after), 14)),
        width=draw(st.integers(max(1, columns.extent - columns.before - columns.after), 40)),
        channels=channels,
        outputs=outputs,
        kernel=kernel[0],
        kernel_w=kernel[1],
        weight_bits=draw(st.integers(2, 8)),
        bits=draw(bits),
        out_bits=draw(bits),
        activation=draw(st.sampled_from(["none", "relu", "prelu"])),
        residual=draw(st.booleans()),
        shuffle=shuffle,
        geometry=geometry,
    )
