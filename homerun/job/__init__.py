"""The life of a run: composes the rooms; signals, watchdog, budget, resume."""
