"""Plan + model -> tied model: copies, derived attributes, graphs of forwards."""
