"""Physical space: images and grids in millimetres, one-step resampling, affine pre-alignment, ITK transform files.

The only part of the package that knows millimetres, orientations and affines; the rest works in voxels of one grid.

Convention: inside the package the world is RAS+ millimetres and a matrix acts on column vectors (x, y[, z], 1). An
`affine` maps voxels to the world; a `world_matrix` maps world points of the *fixed* image to world points of the
*moving* image. A transform from fixed to moving is a sequence of steps, matrices and `DisplacementField`s, applied in
the order given. Files follow ITK: LPS millimetres.

A NIfTI file lies where ITK's reader places it (`frames`), so that written transforms apply in ITK, ANTs and SimpleITK.

2-D images (two axes, or a third one of a single voxel) live in a plane. If it is a world plane (axial, coronal,
sagittal), its coordinates are the two world coordinates that vary, in the order x, y, z; else the two in-plane
directions nearest to world axes, pointing to their positive side. Transforms of slices are written as 3-D ones
(`planes`).
"""

from .affine import register_affine
from .dialects import Frames, read_affine_transform, read_transform, write_transform
from .dialects.itk import write_affine_transform, write_composite_transform
from .dialects.vectors import read_displacement_field, write_displacement_field
from .files import write_image
from .grids import Grid, canonical_grid, center_of_mass, fixed_size_grid, model_grid, voxel_map, voxel_spacing
from .resampling import DisplacementField, Step, resample, transform_points_world, transform_steps
from .volumes import Volume, load_grid, load_image, load_labels

__all__ = [
    "DisplacementField",
    "Frames",
    "Grid",
    "Step",
    "Volume",
    "canonical_grid",
    "center_of_mass",
    "fixed_size_grid",
    "load_grid",
    "load_image",
    "load_labels",
    "model_grid",
    "read_affine_transform",
    "read_displacement_field",
    "read_transform",
    "register_affine",
    "resample",
    "transform_points_world",
    "transform_steps",
    "voxel_map",
    "voxel_spacing",
    "write_affine_transform",
    "write_composite_transform",
    "write_displacement_field",
    "write_image",
    "write_transform",
]
