"""What we ask: thin scripts and the command line."""
