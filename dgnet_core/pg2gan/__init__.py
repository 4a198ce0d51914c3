"""PG2-GAN: a person in another pose, coarsely, then refined (Ma et al., NeurIPS 2017)."""
