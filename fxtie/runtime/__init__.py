"""The tied model itself: what its modules and graphs are made of, and do when they are called."""
