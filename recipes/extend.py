"""Adds to a "+" dataset: `accelerate launch recipes/extend.py cifar100-plus --num_views 16 --output_dir cifar100-plus-16`."""

import sys

from hf_dr.cli.launch import launch

if __name__ == "__main__":
    sys.exit(launch("extend", sys.argv[1:], "accelerate launch recipes/extend.py"))
