"""Evaluation: how well a model predicts a text."""
