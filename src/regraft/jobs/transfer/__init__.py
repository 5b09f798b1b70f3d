"""What `regraft transfer` is made of: the transfer, the training after it, its card."""
