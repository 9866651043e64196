"""`python -m hf_dr COMMAND`, and `accelerate launch -m hf_dr COMMAND`."""

import sys

from hf_dr.cli import main

sys.exit(main())
