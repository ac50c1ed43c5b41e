"""Windows cover every pixel once, with their halo inside the picture; patches lie as AdaBM's code cuts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adabm_kernels.upscaling.windows import Span, patches, spans


@given(size=st.integers(1, 3000), tile=st.integers(1, 400), halo=st.integers(0, 60), phase=st.sampled_from([1, 2, 4]))
def test_windows_cover_an_axis_once_with_their_halo(size, tile, halo, phase):
    halo = -(-halo // phase) * phase
    found = spans(size, tile, halo, phase=phase)
    assert found[0].first == 0 and found[-1].last == size
    assert all(a.last == b.first for a, b in zip(found, found[1:], strict=False))
    assert len({span.length for span in found[:-1]}) <= 1 and 0 <= found[0].length - found[-1].length < phase
    assert all(span.start % phase == 0 for span in found)
    for span in found:
        assert 0 <= span.start <= span.first < span.last <= span.stop <= size
        assert span.start == 0 or span.first - span.start >= halo
        assert span.stop == size or span.stop - span.last >= halo
        # A window keeps at most a tile and what alignment adds, at the ends of the axis also the halo at the border.
        ends = (span.start == 0) + (span.stop == size)
        assert span.last - span.first <= tile + ends * halo + 3


def test_tile_0_and_small_pictures_are_one_window():
    assert spans(1000, 0, 8) == spans(1000, 984, 8) == [Span(0, 1000, 0, 1000)]
    assert spans(1000, 512, 8) == [Span(0, 508, 0, 500), Span(492, 1000, 500, 1000)]


@pytest.mark.parametrize(
    ("size", "want"),
    [(50, [(0, 50)]), (96, [(0, 96)]), (191, [(0, 191)]), (192, [(0, 96), (96, 192)]), (300, [(0, 96), (96, 192), (192, 300)])],
)
def test_patches_of_the_paper(size, want):
    assert patches(size) == [Span(*span, *span) for span in want]
