"""ViT: pictures as sequences of patches (arXiv:2010.11929)."""
