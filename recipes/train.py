"""Trains a student: `accelerate launch recipes/train.py --dataset PLUS --student timm:ARCHITECTURE --output_dir OUT`."""

import sys

from hf_dr.cli.launch import launch

if __name__ == "__main__":
    sys.exit(launch("train", sys.argv[1:], "accelerate launch recipes/train.py"))
