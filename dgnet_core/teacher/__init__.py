"""The teacher: the usual re-id baseline."""
