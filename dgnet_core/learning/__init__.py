"""What every training step is made of."""
