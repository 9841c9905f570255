"""What layers are made of: activations, normalisations, initial weights, seeds."""
