"""Conditional and unconditional atlases (Dalca et al., 2019)."""
