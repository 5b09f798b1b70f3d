"""A data set condensed to a few images a class, and what networks learn from them."""
