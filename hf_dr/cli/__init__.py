"""The door: the command line, which recipes/*.py and `accelerate launch -m hf_dr COMMAND` call as well.

`main` finds the command; each module holds commands of one kind."""
