"""DG-Net in pure PyTorch: the networks, the losses and one training step."""
