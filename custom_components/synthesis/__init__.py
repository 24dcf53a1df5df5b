"""From label maps to images of any contrast, in torch, batched, on whatever device the maps are on.

Each random step is a pair of methods: `draw` takes all random numbers from a generator and returns them as a dictionary
of tensors, one entry of the batch per sample; the call is then a pure function of its input and the draw, so that a
draw can be stored and replayed. An image's effects stand one a file, and `contrast.RandomContrast` composes them;
`brains` has the compositions that the bundles share. Label maps are integers (B, 1, *S), images float32 (B, 1, *S) in
[0, 1].
References: Hoffmann et al., SynthMorph, IEEE TMI 41(3), 2022; Billot et al., SynthSeg, Medical Image Analysis 86, 2023.
"""
