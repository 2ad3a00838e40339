"""Distributed hyperparameter search: Ray Tune executes, Optuna proposes, MLflow shows."""
