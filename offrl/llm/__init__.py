"""Language models trained by policy gradients on the estimator core: sample, score, update."""
