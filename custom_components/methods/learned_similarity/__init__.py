"""Similarities that a network has learned: whether two patches lie on one another, how far two volumes lie apart, and
the distance of features that an autoencoder found by itself."""
