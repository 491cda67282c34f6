"""Journal → terminal."""
