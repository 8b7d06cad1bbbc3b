"""One run: its configuration, its stages, and what it leaves."""
