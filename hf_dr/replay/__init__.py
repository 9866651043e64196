"""Reading back: stored views replayed bit for bit, as datasets to train on.

`loading` opens them; `dataset`, `streaming` and `combined` are their forms, `sampling` says which view comes when."""
