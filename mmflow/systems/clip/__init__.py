"""CLIP: pictures and texts in one space, learnt from pairs (arXiv:2103.00020); and SigLIP (arXiv:2303.15343)."""
