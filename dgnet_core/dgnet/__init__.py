"""DG-Net: everything of the method."""
