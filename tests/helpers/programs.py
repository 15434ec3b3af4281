"""What several test files do with programs of `torch.export`."""

import io

import torch


def reloaded(program):
    """The program, saved and loaded again."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)
