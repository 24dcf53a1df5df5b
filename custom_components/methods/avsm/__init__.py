"""AVSM: networks for joint affine and deformable registration (Shen et al., 2019)."""
