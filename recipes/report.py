"""Gathers runs into tables and plots: `python recipes/report.py RUNS... --output_dir report`."""

import sys

from hf_dr.cli.launch import launch

if __name__ == "__main__":
    sys.exit(launch("report", sys.argv[1:], "python recipes/report.py"))
