"""What is seen: from the bytes of an image file to the augmented pixels of a view.

Keyed randomness, decoding, the ops and the ordered augmentation; `maker` makes views of a base's rows."""
