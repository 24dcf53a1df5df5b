"""DLIR: an affine network, then networks of B-splines, trained one after another (de Vos et al., 2019)."""
