#!/usr/bin/env python
"""Speed of the data path as a share of what picture decoders alone reach: `uv run jobs/bench_data.py`.

Each round times two decoders alone - Pillow's, which most loaders use, and simplejpeg, by which JPEGs are decoded
here - from bytes in memory to pixels that are dropped at once, then packing a folder, packing a .zip, and loading the
store into an image set, all with the same threads. A share is the median over the rounds of decoder time / time, on the
clock and by processor time, which hardly depends on what else the machine does. It depends on the pictures' size: what
has to be done for each file, whatever is in it, takes as long as half of decoding one of Market-1501.

Freed memory is kept for the next round: pages that a virtual machine has to ask its host for can cost as much as
decoding into them, and are counted once, in the untimed round.
"""

import io
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import simplejpeg
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from dgnet_core.learning.memory import keep_freed_memory
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.images import ImageSet
from dgnet_platform.data.pack import CHUNK
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store
from dgnet_platform.threads import map_in_threads

SIZES = ((64, 128, 90, 1), (128, 256, 90, 3), (150, 350, 95, 6))
"""Width, height and JPEG quality of pictures, some 3, 9 and 23 kB: those of Market-1501, those that a network at paper
size sees, and the larger ones of MSMT17; and by how much fewer of them a round has."""


def draw(count: int, width: int, height: int, quality: int) -> list[bytes]:
    """JPEGs of smooth colours with some grain."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 4, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        grain = rng.normal(0, 6, smooth.shape)
        file = io.BytesIO()
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
        pictures.append(file.getvalue())
    return pictures


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock time and processor time of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def shares(encoded: list[bytes], width: int, height: int, rounds: int, threads: int) -> Iterator[tuple[str, ...]]:
    """What the decoders alone, packing and loading take for some pictures: lines of the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, archive, out = (Path(temporary) / name for name in ("own", "own.zip", "store"))
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for number, picture in enumerate(encoded):
                path = folder / "train" / f"{number // 20:04d}" / f"{number:06d}_c{number % 6}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture)
                file.write(path, path.relative_to(folder))

        def decode_all(decode: Callable[[bytes], object]) -> None:
            def decode_chunk(chunk: list[bytes]) -> None:
                for picture in chunk:
                    decode(picture)

            chunks = (encoded[start : start + CHUNK] for start in range(0, len(encoded), CHUNK))
            for _ in map_in_threads(decode_chunk, chunks, threads):
                pass

        def pack(source: Path) -> None:
            shutil.rmtree(out, ignore_errors=True)
            prepare(PrepareConfig(dataset="folder", source=source, out=out, threads=threads))

        def load() -> None:
            ImageSet.load(Store.open(out), "train", height=height, width=width, threads=threads)

        things: dict[str, Callable[[], None]] = {
            "Pillow alone": lambda: decode_all(lambda picture: Image.open(io.BytesIO(picture)).load()),
            "simplejpeg alone": lambda: decode_all(simplejpeg.decode_jpeg),
            "pack a folder": lambda: pack(folder),
            "pack a .zip": lambda: pack(archive),
            "load an image set": load,
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in things}
        for thing in things.values():
            thing()  # once untimed: imports, caches
        for _ in range(rounds):
            for name, thing in things.items():
                times[name].append(seconds(thing))
    for name, taken in times.items():
        rate = len(encoded) / median(wall for wall, _ in taken)
        found = [np.median(np.divide(times[alone], taken), axis=0) for alone in ("Pillow alone", "simplejpeg alone")]
        yield name, f"{rate:,.0f}", *(f"{share:.0%}" for share in np.concatenate(found))


def main(pictures: int = 12_000, rounds: int = 7, threads: int = 2) -> None:
    """Measure and print a table.

    Args:
        pictures: How many of the smallest pictures a round reads.
        rounds: How often each thing is timed.
        threads: Threads that read and decode.
    """
    keep_freed_memory()
    table = Table(title=f"{threads} threads, medians of {rounds} rounds")
    for column in ("", "pictures/s", "of Pillow", "processor", "of simplejpeg", "processor"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for width, height, quality, fewer in SIZES:
        encoded = draw(pictures // fewer, width, height, quality)
        kilobytes = sum(map(len, encoded)) / len(encoded) / 1000
        table.add_section()
        table.add_row(f"{len(encoded):,} of {width} x {height}, {kilobytes:.0f} kB", style="bold")
        for line in shares(encoded, width, height, rounds, threads):
            table.add_row(*line)
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
