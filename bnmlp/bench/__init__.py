"""``bnmlp bench``: what the book's measurements cost here, beside plain PyTorch and JAX."""
