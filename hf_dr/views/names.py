"""The augmentations that have a name; settings need the names, not the ops."""

NAMED = ("rrc", "mixing", "randaug", "randaug_mixing")
"""The paper's four augmentations: crop and flip, + MixUp and CutMix, + RandAugment and erasing, + both."""
