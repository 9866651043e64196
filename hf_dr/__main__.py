"""`python -m hf_dr COMMAND`, and `accelerate launch -m hf_dr COMMAND`."""

import sys

from hf_dr.cli.main import main

sys.exit(main())
