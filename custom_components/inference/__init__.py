"""From a pair of images to fields: network, deformation, refinement."""
