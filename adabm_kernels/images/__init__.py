"""Pictures in and out: files read and written by rows, Pillow images, 8-bit arrays; colour, transparency and orientation."""

from .folder import list_images
from .formats import EXTENSIONS, Layout
from .image import Image, read_image
from .pillow import from_pil, to_pil
from .reader import MAX_PIXELS, PictureReader, open_picture
from .writer import PictureWriter, check_output, write_image

__all__ = [
    "EXTENSIONS",
    "MAX_PIXELS",
    "Image",
    "Layout",
    "PictureReader",
    "PictureWriter",
    "check_output",
    "from_pil",
    "list_images",
    "open_picture",
    "read_image",
    "to_pil",
    "write_image",
]
