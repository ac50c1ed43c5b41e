"""Images of codes whose tiles are given depths: sizes of images, places of tiles, and contents."""

from __future__ import annotations

import torch

# Five numbers: the height and width of an image; the side of a tile, and the top and left of the tiles.
PLACES = {
    "one_pixel": (1, 1, 4, 0, 0),
    "one_row": (1, 9, 4, 1, 3),
    "one_column": (7, 1, 8, 0, 0),
    "cut_tiles": (25, 34, 8, 3, 7),
    "network_tiles": (50, 60, 24, 0, 0),
    "wider_than_a_warp": (11, 77, 35, 4, 30),
    "huge_tiles": (19, 75, 1 << 20, 5, (1 << 20) - 40),
}
THRESHOLDS = (0, 20, 60, 300, 510)


def pictures(height: int, width: int) -> torch.Tensor:
    """Codes [6, H, W, 4]: one image of strong noise, one of weak noise, and four grey ones with one other pixel, each in another
    channel."""
    generator = torch.Generator().manual_seed(height * width)
    x_q = torch.full((6, height, width, 4), 100, dtype=torch.uint8)
    x_q[:2] = torch.randint(0, 256, (2, height, width, 4), dtype=torch.uint8, generator=generator)
    x_q[1] //= 8
    for channel in range(4):
        row, column = (int(torch.randint(size, (), generator=generator)) for size in (height, width))
        x_q[2 + channel, row, column, channel] = (0, 255, 130, 101)[channel]
    return x_q
