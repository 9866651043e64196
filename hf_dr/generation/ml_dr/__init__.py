"""Import of what apple/ml-dr wrote: its archives of pickles, read without executing them."""
