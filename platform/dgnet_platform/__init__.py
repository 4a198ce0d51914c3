"""The platform around the step: data sets, Ray, MLflow and Optuna."""
