"""Evaluates checkpoints: `python recipes/evaluate.py --models plus=out/plus erm=out/erm --sets imagenet imagenet-r ...`."""

import sys

from hf_dr.cli.launch import launch

if __name__ == "__main__":
    sys.exit(launch("evaluate", sys.argv[1:], "python recipes/evaluate.py"))
