"""From the model to posterior draws, with the diagnostics that say whether to trust them."""
