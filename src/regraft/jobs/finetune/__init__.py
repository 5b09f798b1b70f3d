"""A pretrained network fine-tuned on few images: start, search on validation, training, result."""
