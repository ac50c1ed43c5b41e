"""Pictures in and out: files that are read and written by rows, Pillow images and 8-bit arrays, with their colours, transparency
and orientation."""

from .folder import PassedOver, find_pictures, list_images
from .formats import EXTENSIONS, Layout
from .reader import MAX_PIXELS, PictureReader, open_picture, read_image, read_whole
from .writer import PictureWriter, check_output

__all__ = [
    "EXTENSIONS",
    "MAX_PIXELS",
    "Layout",
    "PassedOver",
    "PictureReader",
    "PictureWriter",
    "check_output",
    "find_pictures",
    "list_images",
    "open_picture",
    "read_image",
    "read_whole",
]
