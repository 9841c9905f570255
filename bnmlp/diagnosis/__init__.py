"""What is wrong with a network of one's own, how sure that is, and what helps."""
