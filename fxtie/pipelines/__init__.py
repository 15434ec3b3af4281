"""In torch's pipelines: passes, exported programs, constants."""
