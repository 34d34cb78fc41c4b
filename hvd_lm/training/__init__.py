"""Training: the loop and what it needs. NumPy in, floats out; knows no framework."""
