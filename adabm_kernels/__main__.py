"""`python -m adabm_kernels`: the report of the machine and the backends, the same as `adabm info`."""

import sys

from .cli import main

sys.exit(main(["info", *sys.argv[1:]]))
