"""The stages of a model in TensorFlow."""
