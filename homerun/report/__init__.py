"""Journal → metadata.json, report.md, index.html, plots."""
