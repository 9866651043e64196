"""What every card of a "+" dataset says."""

from __future__ import annotations

HEAD_TEXT = """
Each example carries, for V random views of its image, the augmentation's parameters and the K most probable classes of a
teacher ensemble with their log-probabilities ([Dataset Reinforcement](https://arxiv.org/abs/2303.08983), Faghri et al., ICCV
2023). A student replays stored views bit for bit and learns the stored answers: no teacher in memory, and no forward pass
of it. The columns are plain Parquet, which `load_dataset` opens; the library hf_dr, installed from its Git repository, replays
them.

| column | meaning |
|---|---|
| the base dataset's own | |
| `source_index` | row of the base split |
| `image_hash` | XXH3 of the decoded image's size and RGB pixels |
| `views_hash` | hash of the pixels of all V views, as the teacher saw them |
| `teacher_ids` | \\[V\\]\\[K\\] classes, most probable first |
| `teacher_logprobs` | \\[V\\]\\[K\\] natural log-probabilities of the averaged ensemble, not renormalised |
| `tail_ids`, `tail_logprobs` | \\[T\\] with signal `topk_image_tail`: the same of the mean answer to the V views |
| `aug_<op>_<parameter>` | \\[V\\] what was drawn; `aug_partner` is the row mixed in, -1 for none |""".strip()

CITATION = """## Citation

```bibtex
@inproceedings{faghri2023reinforce,
  title={Reinforce Data, Multiply Impact: Improved Model Accuracy and Robustness with Dataset Reinforcement},
  author={Faghri, Fartash and Pouransari, Hadi and Mehta, Sachin and Farajtabar, Mehrdad and Farhadi, Ali
    and Rastegari, Mohammad and Tuzel, Oncel},
  booktitle={IEEE/CVF International Conference on Computer Vision (ICCV)},
  year={2023}
}
```"""

FOOT_TEXT = f"""## Limits and bias

- It is made for training image classifiers over the base dataset's classes: not for evaluating them, and not for recognising
  people or deciding about them.
- The answers are a teacher's, not the truth. A student inherits the teacher's errors, blind spots and biases, and those of the
  data that the teacher learnt from; measure a student where it will be used.
- Of each answer only K classes are kept. How the rest of the probability is spread over the others is not known, or only on
  average: over the views of an example (signal `topk_image_tail`) or over the draws (`sampled`).
- Images and labels are the base dataset's, with its errors; its licence and terms hold for them. The teachers' licences are
  named with each configuration.

{CITATION}

Cite the base dataset and the teachers as well."""
