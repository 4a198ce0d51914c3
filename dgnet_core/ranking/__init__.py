"""Re-identification figures: descriptors, ranking, re-ranking."""
