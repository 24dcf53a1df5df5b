"""Brain extraction and structures of the brain: one small segmentation network for heads of any contrast.

The network sees a head at 2 mm and gives each voxel the probabilities of background and 17 structures. A brain mask is
where background is unlikely, closed and filled; the label map is the most likely class. To use it in a chain of MONAI's
dictionary transforms, where images are `MetaTensor`s (1, *S) of any orientation and spacing:

    from custom_components.methods.brain_extraction.transforms import ExtractBraind
    ExtractBraind(keys="image", weights="bundles/brain_extraction/models/model.pt", apply=True, border=2)

adds `image_brain`, a mask on the image's own grid, and with `apply` sets the image outside it to 0. In a config:

    {"_target_": "custom_components.methods.brain_extraction.transforms.ExtractBraind", "keys": "image",
        "weights": "bundles/brain_extraction/models/model.pt"}

The function beneath is `BrainSegmenter.mask`: `BrainSegmenter(weights).mask(image)` is a MetaTensor (1, *S) of uint8,
and `.labels(image)` the label map. The network is made and its weights are loaded at the first call, once;
`BrainSegmenter(network=...)` uses a network as it is.
"""
