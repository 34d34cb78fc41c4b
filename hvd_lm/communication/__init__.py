"""A model of communication: what a link does, measured, and what a step of a run will take on it. NumPy only."""
