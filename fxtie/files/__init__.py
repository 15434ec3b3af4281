"""Rules and tied models as files: data and no code."""
