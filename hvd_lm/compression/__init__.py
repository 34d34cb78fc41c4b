"""How gradients travel where they are not sent as they are: compressors, and what ranks keep between steps. NumPy only."""
