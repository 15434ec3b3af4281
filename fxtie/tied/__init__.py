"""What a tied model is made of: path copies, derived attributes, regions."""
