"""Trains a detector: `accelerate launch recipes/detect.py --config recipes/coco/detect.yaml --student FOLDER`."""

import sys

from hf_dr.cli.launch import launch

if __name__ == "__main__":
    sys.exit(launch("detect", sys.argv[1:], "accelerate launch recipes/detect.py"))
