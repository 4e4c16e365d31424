"""Converters from original data-set layouts to shards."""
