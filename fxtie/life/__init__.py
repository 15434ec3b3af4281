"""What is done with a tied model: initialize, fit, verify, save, load."""
