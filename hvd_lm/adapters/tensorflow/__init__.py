"""The TensorFlow adapter."""
