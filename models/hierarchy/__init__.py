"""The hierarchical model: what is believed, of which runs, and how it is computed."""
