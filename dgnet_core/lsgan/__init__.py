"""LSGAN: people drawn from noise alone (Mao et al., ICCV 2017), as DG-Net's authors compare it."""
