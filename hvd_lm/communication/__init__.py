"""Communication: what a link does, measured, and what a step will take on it; compressors, and what ranks keep. NumPy only."""

from hvd_lm.communication.compression import Compressor, PowerSGD

__all__ = ["Compressor", "PowerSGD"]
