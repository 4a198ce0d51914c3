"""What MLflow is told; no other room imports MLflow."""
