"""Swin: attention within windows that shift, over four sizes of patches (arXiv:2103.14030)."""
