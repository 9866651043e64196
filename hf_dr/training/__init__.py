"""Learning: the loss, the trainers and the students.

A student folder is a checkpoint of transformers with a card; `student_hub` publishes it."""
