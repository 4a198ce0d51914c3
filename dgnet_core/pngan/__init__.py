"""PN-GAN: a residual generator that normalises the pose of a person (Qian et al., ECCV 2018)."""
