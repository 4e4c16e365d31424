"""What each Trainer gets."""
