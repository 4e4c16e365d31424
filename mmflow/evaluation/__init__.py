"""What at least two systems measure."""
