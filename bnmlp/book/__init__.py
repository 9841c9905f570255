"""What chapters use to state and draw; nothing else imports it."""
