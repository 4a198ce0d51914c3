"""What one submits or runs: each file is one command."""
