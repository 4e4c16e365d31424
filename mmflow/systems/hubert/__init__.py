"""HuBERT: masked prediction of offline k-means units (arXiv:2106.07447)."""
