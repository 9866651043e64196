"""Measuring: accuracy, calibration and robustness of checkpoints, and runs side by side.

`run` evaluates, `comparison` trains and compares, `results` gathers what is in many folders and `pages` shows it."""
