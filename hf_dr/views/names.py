"""What can be chosen of views, by name; settings need the names, not the ops or torch."""

NAMED = ("rrc", "mixing", "randaug", "randaug_mixing")
"""The paper's four augmentations: crop and flip, + MixUp and CutMix, + RandAugment and erasing, + both."""

AUGMENT_ON = ("auto", "cpu", "device")
"""Where views are made."""
