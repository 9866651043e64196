"""The Hub: pushing and fetching repositories, with retries.

Nothing here knows how a dataset is made or read back."""
