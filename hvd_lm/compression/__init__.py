"""How gradients travel where they are not sent as they are: compressors, and what ranks keep between steps. NumPy only."""

from hvd_lm.compression.compressors import Compressor, PowerSGD

__all__ = ["Compressor", "PowerSGD"]
