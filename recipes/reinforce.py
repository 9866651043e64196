# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-dr @ git+URL"]  # URL: the address of this repository, as in README.md
# ///
"""Reinforces a dataset: `accelerate launch recipes/reinforce.py --config recipes/fashion_mnist/reinforce.yaml`."""

import sys

from hf_dr.cli.launch import launch

if __name__ == "__main__":
    sys.exit(launch("reinforce", sys.argv[1:], "accelerate launch recipes/reinforce.py"))
