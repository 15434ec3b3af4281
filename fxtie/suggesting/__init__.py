"""Rules that a model could have."""
