"""Trained weights reused: permutation symmetry, matching, merging, connectivity."""
