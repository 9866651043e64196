"""What can be chosen of a teacher and its answers, by name; settings and file checks need the names, not torch."""

import os
from collections.abc import Sequence

TeacherNames = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""How a teacher is named: by one or several of what `Teacher.from_pretrained` takes."""

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""How members compute: the name in settings -> torch's type."""

TOPK, IMAGE_TAIL, SAMPLED = SIGNALS = ("topk", "topk_image_tail", "sampled")
"""What is stored of each answer; `hf_dr.teacher.signals` says what they mean."""
