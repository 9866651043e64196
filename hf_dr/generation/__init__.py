"""Making and checking: runs that write "+" datasets, and what proves or shows what is in them.

Training, transfer and evaluation never import this room: they need the files, not who made them."""
