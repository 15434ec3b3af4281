"""Rules + model -> `Plan`: names, resolving, lowering, checks."""
