"""The model's log density as machine code. The folder may go without any answer changing."""
