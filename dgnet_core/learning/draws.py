"""The one source of randomness: Philox 4x32-10, the same numbers on any device and any rank.

A counter-based generator has no state: a number is a function of (seed, purpose, iteration, place, index). So a resumed
run needs no saved generator, an image's draws do not depend on how many ranks share the batch, and a CUDA graph can
replay them with the iteration as an input (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011).
"""

import zlib
from functools import cache

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counters: Tensor, seed: int) -> Tensor:
    """Philox 4x32-10 of counters (4, N), int64 in [0, 2^32): four random words each, in the same shape.

    Args:
        counters: rows c0 to c3.
        seed: the key, in [0, 2^64); its lower word is k0.
    """
    multipliers, keys = _constants(seed, counters.device)
    even, odd = counters[::2], counters[1::2]
    for key in keys:
        # int64 products wrap around, which leaves the bits of the unsigned ones.
        product = (even * multipliers).flip(0)
        even, odd = ((product >> 32) & _WORD) ^ odd ^ key, product & _WORD
    return torch.stack([even, odd], dim=1).flatten(0, 1)


@cache
def _constants(seed: int, device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Multipliers (2, 1) and the key (2, 1) of every round: made once, for a tensor made of numbers stalls a GPU."""
    keys = [
        [(word + step * turn) & _WORD for word, step in zip((seed & _WORD, seed >> 32), _KEY_STEPS, strict=True)]
        for turn in range(_ROUNDS)
    ]
    multipliers = torch.tensor(_MULTIPLIERS, device=device)[:, None]
    return multipliers, torch.tensor(keys, device=device)[:, :, None].unbind()


def purpose_word(purpose: str) -> int:
    """The word of a counter that keeps the streams of different purposes apart."""
    return zlib.crc32(purpose.encode())


def words(
    seed: int, purpose: str, iteration: int | Tensor, places: range, count: int, device: torch.device | str
) -> Tensor:
    """Random words (len(places), count), int64 in [0, 2^32).

    Args:
        seed: the run's.
        purpose: what they are for; each has streams of its own.
        iteration: 0-based; a tensor where a CUDA graph replays the draws.
        places: of the images in the global batch.
        count: words an image.
        device: where they are made.
    """
    blocks = -(-count // 4)
    shape = (len(places), blocks)
    counters = torch.empty((4, *shape), dtype=torch.int64, device=device)
    counters[0] = torch.arange(blocks, device=device)
    counters[1] = torch.arange(places.start, places.stop, places.step, device=device)[:, None]
    counters[2] = iteration
    counters[3] = purpose_word(purpose)
    drawn = philox(counters.flatten(1), seed)
    return drawn.view(4, *shape).permute(1, 2, 0).flatten(1)[:, :count]


def uniform(
    seed: int, purpose: str, iteration: int | Tensor, places: range, count: int, device: torch.device | str
) -> Tensor:
    """Uniform draws (len(places), count) in [0, 1), float32 with 24 random bits; arguments as for `words`."""
    return (words(seed, purpose, iteration, places, count, device) >> 8).float() * 2.0**-24


def permutation(seed: int, purpose: str, index: int, length: int) -> Tensor:
    """A random order (length,) int64 of `range(length)`, on the CPU."""
    high, low = words(seed, purpose, index, range(length), 2, "cpu").unbind(1)
    return torch.argsort((high << 31) ^ low, stable=True)  # 63 bits: no ties to speak of
