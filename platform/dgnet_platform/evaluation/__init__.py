"""What trained networks can do."""
