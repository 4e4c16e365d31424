"""What the decoders raise."""


class BadSample(ValueError):
    """One sample cannot be used; the message says why. It costs the sample, never the run."""
