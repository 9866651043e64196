"""Trains one student by several objectives and seeds, and compares them; see --help."""

import sys

from hf_dr.cli.launch import launch

if __name__ == "__main__":
    sys.exit(launch("compare", sys.argv[1:], "compare.py"))
