"""VoxelMorph: what is its own beside the shared network, cycles and identities (Kim et al., 2019)."""
