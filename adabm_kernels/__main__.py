"""`python -m adabm_kernels`: the command line where `adabm` is not on the path; alone, the report that `adabm info` gives."""

import sys

from .cli import main

sys.argv[1:] = sys.argv[1:] or ["info"]
sys.exit(main())
