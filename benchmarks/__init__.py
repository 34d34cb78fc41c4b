"""The bench: hvd_lm beside its peers, on the same work. See README.md; not part of the installed package."""
