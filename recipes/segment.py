"""Trains a segmenter: `accelerate launch recipes/segment.py --config recipes/ade20k/segment.yaml --student FOLDER`."""

import sys

from hf_dr.cli.launch import launch

if __name__ == "__main__":
    sys.exit(launch("segment", sys.argv[1:], "accelerate launch recipes/segment.py"))
