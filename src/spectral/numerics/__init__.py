"""Numerics that metrics, layers and perturbations share: cutoffs, matrices, exact products, one cache."""
