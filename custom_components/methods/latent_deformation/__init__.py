"""Deformations as points of a low-dimensional latent space: a conditional variational autoencoder (Krebs et al.)."""
