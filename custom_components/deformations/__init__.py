"""From parameters to fields: velocities, momenta, affine maps, and the shooting and kernels behind them."""
