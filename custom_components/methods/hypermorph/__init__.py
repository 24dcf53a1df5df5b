"""HyperMorph (Hoopes et al., 2021, 2022)."""
