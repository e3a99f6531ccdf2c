"""The model: torch only. No files, no printing, no device guesses, no data."""
