"""SynthMorph (Hoffmann et al., 2022)."""
