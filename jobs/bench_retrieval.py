#!/usr/bin/env python
"""Times the ranking of Market-1501: a NumPy loop, a compiled ranker, and `dgnet_core.ranking`.

All three get the same drawn descriptors and compute Rank@1 and mAP by Market-1501's protocol; their answers
must agree. They take turns, so that a busy machine slows all of them: in each round the loop ranks its share
of the queries, and the others all of them. `product` is the matrix product, `ranking` everything else.

    uv run jobs/bench_retrieval.py
    uv run jobs/bench_retrieval.py --gallery 500000 --rounds 0      # ours alone: time and memory
"""

import ctypes
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import tyro

from dgnet_core.ranking import retrieval
from dgnet_core.ranking.features import Features

BETA = 0.5
PERSONS = 750
BLOCK = 512  # queries whose scores the compiled ranker gets at once

# A full sort per query, then the average precision, as Cython rankers do, but on all cores.
COMPILED_RANKER = r"""
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

extern "C" void rank_block(const float* scores, int64_t queries, int64_t gallery, const int64_t* q_id,
                           const int64_t* q_cam, const int64_t* g_id, const int64_t* g_cam,
                           double* ap, int64_t* first) {
  #pragma omp parallel
  {
    std::vector<int32_t> order(gallery);
    #pragma omp for schedule(dynamic, 8)
    for (int64_t q = 0; q < queries; ++q) {
      const float* row = scores + q * gallery;
      std::iota(order.begin(), order.end(), 0);
      std::sort(order.begin(), order.end(), [row](int32_t a, int32_t b) { return row[a] > row[b]; });
      int64_t place = 0, matches = 0;
      double sum = 0;
      first[q] = 0;
      for (int32_t g : order) {
        if (g_id[g] == -1 || (g_id[g] == q_id[q] && g_cam[g] == q_cam[q])) continue;
        if (g_id[g] == q_id[q]) {
          if (matches == 0) first[q] = place + 1;
          double before = place > 0 ? double(matches) / place : 1.0;
          ++matches;
          sum += (before + double(matches) / (place + 1)) / 2;
        }
        ++place;
      }
      ap[q] = matches > 0 ? sum / matches : 0;
    }
  }
}
"""


@dataclass
class Run:
    """One program's answer and what it cost."""

    average_precision: np.ndarray
    first_match_rank: np.ndarray
    product_s: float
    ranking_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.product_s + self.ranking_s


def draw(ids: np.ndarray, rng: np.random.Generator, noise: float) -> Features:
    """Descriptors of 2 x 512 values: a centre per person, and noise."""
    centres = np.random.default_rng(0).standard_normal((PERSONS + 2, 1024), dtype=np.float32)
    values = torch.from_numpy(centres[ids] + noise * rng.standard_normal((len(ids), 1024), dtype=np.float32))
    return Features(
        prim=F.normalize(values[:, :512]),
        fine=F.normalize(values[:, 512:]),
        person_ids=torch.from_numpy(ids),
        camera_ids=torch.from_numpy(rng.integers(1, 7, len(ids))),
    )


def arrays(features: Features, beta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descriptors, person ids and camera ids as the other programs take them."""
    values = torch.cat([features.prim, beta * features.fine], dim=1)
    return values.numpy(), features.person_ids.numpy(), features.camera_ids.numpy()


def rank_by_loop(query: Features, gallery: Features, rows: range) -> Run:
    """Per query: a product, an argsort, set operations on indices, average precision in Python."""
    values, persons, cameras = arrays(query, BETA)
    gallery_values, gallery_persons, gallery_cameras = arrays(gallery, 1)
    average_precision, first = np.zeros(len(rows)), np.zeros(len(rows), dtype=int)
    product_s, start = 0.0, time.perf_counter()
    for n, row in enumerate(rows):
        product_start = time.perf_counter()
        scores = gallery_values @ values[row]
        product_s += time.perf_counter() - product_start
        order = np.argsort(scores)[::-1]
        same_person = np.flatnonzero(gallery_persons == persons[row])
        same_camera = np.flatnonzero(gallery_cameras == cameras[row])
        matches = np.setdiff1d(same_person, same_camera, assume_unique=True)
        junk = np.append(np.flatnonzero(gallery_persons == -1), np.intersect1d(same_person, same_camera))
        order = order[np.isin(order, junk, invert=True)]
        places = np.flatnonzero(np.isin(order, matches))
        for i, place in enumerate(places):
            before = i / place if place else 1.0
            average_precision[n] += (before + (i + 1) / (place + 1)) / 2 / len(places)
        first[n] = places[0] + 1 if len(places) else 0
    return Run(average_precision, first, product_s, time.perf_counter() - start - product_s)


def rank_compiled(query: Features, gallery: Features, library: ctypes.CDLL) -> Run:
    """The matrix product in blocks, and a compiled sort of every row."""
    values, persons, cameras = arrays(query, BETA)
    gallery_values, gallery_persons, gallery_cameras = arrays(gallery, 1)
    average_precision, first = np.zeros(len(query)), np.zeros(len(query), dtype=np.int64)
    buffer = np.empty((BLOCK, len(gallery)), dtype=np.float32)
    product_s, start = 0.0, time.perf_counter()
    for i in range(0, len(query), BLOCK):
        block = slice(i, min(i + BLOCK, len(query)))
        product_start = time.perf_counter()
        scores = np.matmul(values[block], gallery_values.T, out=buffer[: block.stop - i])
        product_s += time.perf_counter() - product_start
        given = persons[block], cameras[block], gallery_persons, gallery_cameras
        returned = average_precision[block], first[block]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*given, *returned)]
        sizes = ctypes.c_int64(len(scores)), ctypes.c_int64(len(gallery))
        library.rank_block(ctypes.c_void_p(scores.ctypes.data), *sizes, *pointers)
    return Run(average_precision, first, product_s, time.perf_counter() - start - product_s)


def rank_ours(query: Features, gallery: Features) -> Run:
    """`retrieval.evaluate`, with a clock around its matrix products."""
    product_s = 0.0
    dot_products = retrieval.dot_products

    def timed(*args, **kwargs):
        nonlocal product_s
        start = time.perf_counter()
        result = dot_products(*args, **kwargs)
        product_s += time.perf_counter() - start
        return result

    with mock.patch.object(retrieval, "dot_products", timed):
        start = time.perf_counter()
        result = retrieval.evaluate(query, gallery, BETA)
        total_s = time.perf_counter() - start
    precision, first = result.average_precision.numpy(), result.first_match_rank.numpy()
    return Run(precision, first, product_s, total_s - product_s)


def compile_ranker(folder: Path) -> ctypes.CDLL | None:
    """The compiled ranker, or None without a C++ compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        return None
    source, target = folder / "ranker.cpp", folder / "ranker.so"
    source.write_text(COMPILED_RANKER)
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def with_memory(work: Callable[[], Run]) -> tuple[Run, float]:
    """The run, and the largest memory of the whole process meanwhile in MiB (Linux; elsewhere NaN)."""
    if not Path("/proc/self/clear_refs").exists():
        return work(), math.nan
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
    run = work()
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return run, next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main(queries: int = 3368, gallery: int = 19732, rounds: int = 5, noise: float = 3.0) -> None:
    """Prints the table.

    Args:
        queries: number of queries.
        gallery: gallery images, 19 % of them junk and 14 % distractors as in Market-1501.
        rounds: turns that the programs take; 0 runs ours alone, once.
        noise: noise in the descriptors; 3 gives an mAP near 0.4.
    """
    rng = np.random.default_rng(1)
    kinds = rng.choice(3, gallery, p=[0.665, 0.142, 0.193])
    gallery_ids = np.where(kinds == 0, rng.integers(1, PERSONS + 1, gallery), np.where(kinds == 1, 0, -1))
    query_features = draw(rng.integers(1, PERSONS + 1, queries), rng, noise)
    gallery_features = draw(gallery_ids, rng, noise)
    print(f"{queries:,} queries x {gallery:,} gallery images x 1,024, {torch.get_num_threads()} threads")

    run, memory = with_memory(lambda: rank_ours(query_features, gallery_features))
    print(f"ours: {run.total_s:.2f} s, process peak {memory:,.0f} MiB, mAP {run.average_precision.mean():.4f}")
    if rounds == 0:
        return

    with tempfile.TemporaryDirectory() as folder:
        library = compile_ranker(Path(folder))
    if library is None:
        print("no C++ compiler (c++) found: the compiled ranker is left out")
    runs: dict[str, list[Run]] = {"numpy loop": [], "compiled sort": [], "ours": []}
    peak = dict.fromkeys(runs, 0.0)
    answer = run
    for turn in range(rounds):
        share = range(turn, queries, rounds)
        programs = {
            "numpy loop": partial(rank_by_loop, query_features, gallery_features, share),
            "compiled sort": library and partial(rank_compiled, query_features, gallery_features, library),
            "ours": partial(rank_ours, query_features, gallery_features),
        }
        for name, program in programs.items():
            if program is None:
                continue
            run, memory = with_memory(program)
            rows = share if name == "numpy loop" else range(queries)
            difference = np.abs(run.average_precision - answer.average_precision[rows]).mean()
            if difference > 1e-5:  # near ties are rounded differently by each
                raise SystemExit(f"{name} disagrees: average precision differs by {difference:.2g} on average")
            scale = queries / len(rows)
            runs[name].append(replace(run, product_s=run.product_s * scale, ranking_s=run.ranking_s * scale))
            peak[name] = max(peak[name], memory)

    print(f"{'':14}{'product s':>10}{'ranking s':>10}{'total s':>9}{'peak MiB':>10}  ours is faster by (range)")
    for name, mine in runs.items():
        if mine:
            seconds = [np.median([getattr(r, f"{p}_s") for r in mine]) for p in ("product", "ranking", "total")]
            ratios = ", ".join(ratio(mine, runs["ours"], part) for part in ("ranking", "total"))
            print("{:14}{:10.2f}{:10.2f}{:9.2f}{:10,.0f}  {}".format(name, *seconds, peak[name], ratios))


def ratio(theirs: list[Run], ours: list[Run], part: str) -> str:
    """How many times faster ours is in the median round, and in the worst and best."""
    each = [getattr(t, f"{part}_s") / getattr(o, f"{part}_s") for t, o in zip(theirs, ours, strict=True)]
    return f"{part} {np.median(each):.1f}x ({min(each):.1f} - {max(each):.1f})"


if __name__ == "__main__":
    tyro.cli(main)
