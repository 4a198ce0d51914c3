#!/usr/bin/env python
"""Speed of the data path as a share of what picture decoders alone reach: `uv run jobs/bench_data.py`.

Each round times two decoders alone - Pillow's, which most loaders use, and simplejpeg, by which JPEGs are decoded
here - from bytes in memory to pixels that are dropped at once, then packing a folder, packing a .zip, and loading the
store into an image set, all with the same threads. A share is the median over the rounds of decoder time / time, on the
clock and by processor time, which hardly depends on what else the machine does.

Freed memory is kept for the next round: pages that a virtual machine has to ask its host for can cost as much as
decoding into them, and are counted once, in the untimed round.
"""

import io
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import simplejpeg
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from dgnet_core.memory import keep_freed_memory
from dgnet_platform.datasets.decode import map_in_threads
from dgnet_platform.datasets.images import ImageSet
from dgnet_platform.datasets.pack import CHUNK
from dgnet_platform.datasets.prepare import PrepareConfig, prepare
from dgnet_platform.datasets.store import Store


def draw(count: int) -> list[bytes]:
    """JPEGs of 128 x 64 pixels and some 3 kB, as Market-1501's are."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 4, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((64, 128), Image.Resampling.BICUBIC))
        grain = rng.normal(0, 6, smooth.shape)
        file = io.BytesIO()
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    return pictures


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock time and processor time of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def main(pictures: int = 12_000, rounds: int = 7, threads: int = 2) -> None:
    """Measure and print a table.

    Args:
        pictures: How many pictures a round reads.
        rounds: How often each thing is timed.
        threads: Threads that read and decode.
    """
    keep_freed_memory()
    encoded = draw(pictures)
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

            chunks = (encoded[start : start + CHUNK] for start in range(0, pictures, CHUNK))
            for _ in map_in_threads(decode_chunk, chunks, threads):
                pass

        def pack(source: Path) -> None:
            shutil.rmtree(out, ignore_errors=True)
            prepare(PrepareConfig(dataset="folder", source=source, out=out, threads=threads))

        def load() -> None:
            ImageSet.load(Store.open(out), "train", height=128, width=64, threads=threads)

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

    table = Table(title=f"{pictures:,} pictures, {threads} threads, medians of {rounds} rounds")
    for column in ("", "pictures/s", "of Pillow", "(processor)", "of simplejpeg", "(processor)"):
        table.add_column(column, justify="right" if column else "left")
    for name, taken in times.items():
        rate = pictures / median(wall for wall, _ in taken)
        shares = [np.median(np.divide(times[alone], taken), axis=0) for alone in ("Pillow alone", "simplejpeg alone")]
        table.add_row(name, f"{rate:,.0f}", *(f"{share:.0%}" for share in np.concatenate(shares)))
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
