"""torchvision's models for the command line; `vision.py` tells why not by their own names."""

from vision import import_torchvision

resnet50 = import_torchvision().models.resnet50
