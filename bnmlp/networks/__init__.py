"""The networks, the engine of the fast one, and the protocol that they share."""
