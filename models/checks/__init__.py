"""What a fit's own table says against it: rises, checkpoints, posterior predictive checks."""
