"""What the verbs of `regraft ticket` do: search, classify, pack."""
