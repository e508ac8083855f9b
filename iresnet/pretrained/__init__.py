"""Trained models that come with the package, each a folder here; and models from run folders and the hub, by name."""

__all__ = ["load", "pretrained_names"]

from iresnet.pretrained.loading import load, pretrained_names
