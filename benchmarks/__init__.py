"""Figures, measured: `python -m benchmarks [NAME …]` runs them all, or those named. They never run as tests."""
