"""Programs of `torch.export`, and tied models for inference only."""
