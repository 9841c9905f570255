"""A stand-in for what chapters use."""
