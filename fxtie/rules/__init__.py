"""What a user writes: rules, ties, free tensors, and files of them."""
