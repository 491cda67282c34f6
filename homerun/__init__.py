"""homerun: train nanochat on rented GPUs, and bring the model home."""

__version__ = "0.1.0"
