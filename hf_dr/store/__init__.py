"""What is on disk: the columns, the provenance, the shards and the card of a "+" dataset, and its base.

`schema` and `provenance` are the format; everything that reads or writes files of a dataset goes through here."""
