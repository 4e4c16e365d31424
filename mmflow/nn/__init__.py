"""Layers and maths that at least two systems share."""
