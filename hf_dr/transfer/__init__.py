"""Other tasks: detection and segmentation on a student's backbone.

`trainer` is what both share."""
