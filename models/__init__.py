"""What we believe: the run table, the laws, the priors, the hierarchy, and what follows."""
