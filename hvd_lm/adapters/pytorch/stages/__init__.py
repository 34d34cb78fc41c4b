"""The stages of a model in PyTorch."""
