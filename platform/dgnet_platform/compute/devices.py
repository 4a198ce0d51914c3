"""Where this process computes."""

import torch


def own_device(*, gpu: bool = True) -> torch.device:
    """This process' GPU, if it has one and is to use it; else the CPU."""
    return torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
