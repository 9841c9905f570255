"""Measurements of any network."""
