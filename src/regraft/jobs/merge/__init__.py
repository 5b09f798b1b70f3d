"""What `regraft merge` and `regraft align` share: checkpoints, data, matchers, cards and folders."""
