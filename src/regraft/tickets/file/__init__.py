"""The `.ticket` file: a seed, entropy-coded masks, and what no seed gives back."""
