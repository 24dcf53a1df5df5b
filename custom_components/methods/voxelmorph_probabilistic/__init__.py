"""Probabilistic VoxelMorph (Dalca et al., 2018, 2019)."""
