"""What we ask: the command line, pictures, reports, and thin scripts."""
