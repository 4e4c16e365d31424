"""The procedural audio-visual-language world, the embedded default data."""
