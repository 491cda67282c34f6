"""Port 8000: pages and routes over the journal and serve/."""
