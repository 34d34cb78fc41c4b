"""Generation: text from a model."""
