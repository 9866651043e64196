"""What can be chosen of the order of views, by name; settings need the names, not torch."""

VIEW_ORDERS = ("all", "random", "easy_first", "hard_first")
BY_DIFFICULTY = VIEW_ORDERS[2:]

DIFFICULTIES = ("entropy", "cross_entropy")
"""What views are ranked by: the entropy of the stored answer, or its cross-entropy to the label."""
