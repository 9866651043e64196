"""Trains a student: `accelerate launch recipes/train.py --config recipes/fashion_mnist/plus.yaml`."""

import sys

from hf_dr.cli import launch

if __name__ == "__main__":
    sys.exit(launch("train", sys.argv[1:], "accelerate launch recipes/train.py"))
