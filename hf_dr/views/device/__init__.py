"""Views computed on a device with torch: the same ops as `hf_dr.views.ops`, bit for bit what Pillow gives.

Pillow on the CPU stays the reference. An augmentation is turned into steps of plain numbers on the host (`plan`), and an
engine performs them on batches: `eager` in torch operations on any device, `kernels` in Triton on a GPU.
"""
