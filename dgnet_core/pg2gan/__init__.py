"""PG2-GAN: a coarse picture of a person in another pose, then its refinement (Ma et al., NeurIPS 2017)."""
