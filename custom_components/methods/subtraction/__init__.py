"""Motion correction of angiography: the mask frame is moved to each contrast frame before it is subtracted.

Convention: a series is (T, 1, H, W), logarithms of intensities, in which attenuations add up along a ray. Contrast
agent makes a pixel darker. phi_t = id + ddf_t maps points of frame t to the mask, so the frames themselves, and the
vessels in them, are never resampled. What is subtracted is mask o phi_t - frame_t: the contrast agent's attenuation.
"""
