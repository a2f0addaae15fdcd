"""What a run of a config takes, before it begins: counts, the work of its steps, and what a few seconds on this machine say of them."""
