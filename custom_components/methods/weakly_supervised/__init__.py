"""Weakly supervised registration: images in, label maps in the loss alone (Hu et al., 2018)."""
