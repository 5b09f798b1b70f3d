"""What a finished model or ticket says of images, and how good it is on labelled ones."""
