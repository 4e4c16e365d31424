"""Modular multimodal pretraining on Lightning."""
