"""The model, declared once: parameters, stages, and the noise of dropout. NumPy only."""
