"""A stand-in for the package's first room."""
