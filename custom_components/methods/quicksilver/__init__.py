"""Quicksilver (Yang et al., 2017)."""
