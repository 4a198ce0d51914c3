"""Options, and what the terminal shows."""
