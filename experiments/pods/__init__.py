"""A config on a pod of TPUs without one: its steps compiled for a topology, and what the programs hold, send and take at least."""
