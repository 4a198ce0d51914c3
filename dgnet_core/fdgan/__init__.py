"""FD-GAN: a person in another pose, from features that know no pose (Ge et al., NeurIPS 2018)."""
