"""All ranking rewards, metrics, copy checks and group advantages of a batch of rankings at once."""
