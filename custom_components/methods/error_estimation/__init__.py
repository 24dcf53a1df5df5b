"""The error of a registration, in millimetres at each voxel, estimated by a network from the answer itself.

The network sees the fixed image, the warped image and, where it is known, the displacement. It learned from
registrations whose error is known: random ones, and those of other networks on pairs whose true deformation is known.
"""
