"""Few-shot learning as jobs: meta-training, adaptation to new classes, and their measurement."""
