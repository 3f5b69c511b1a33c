"""The model's log density and gradient as machine code; the folder may go without any answer changing."""
