"""Formulas behind the reference numbers: weights, inputs and features, from seeded legacy generators."""

import zlib

import numpy as np


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Value of tensor `key` ("gen.", "dis.", "id." or "teacher." + its name in the release), float32."""
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    z = np.random.RandomState(zlib.crc32(key.encode())).randn(*shape).astype(np.float32)
    if len(shape) >= 2:  # convolutions and linear layers: fan-in scaling
        gain = 0.75 if key.startswith("dis.") else 1.0
        return z * np.float32(gain * np.sqrt(2.0 / np.prod(shape[1:])))
    if last == "running_var":
        return 1 + 0.1 * np.abs(z)
    if key.endswith(".bn3.weight"):  # last norm of a bottleneck block
        return 0.2 + 0.02 * z
    if last in ("weight", "gamma"):
        return 1 + 0.1 * z
    return 0.1 * z  # biases, running means, beta


def step_inputs(seed: int, batch: int, classes: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Images x_a, x_b, xp_a, xp_b (B x 3 x H x W, float32, normalised) and labels l_a, l_b (B)."""
    rng = np.random.RandomState(seed)

    def image() -> np.ndarray:
        blocks = np.kron(rng.randn(batch, 3, height // 16, width // 8), np.ones((16, 8)))
        return (blocks + 0.1 * rng.randn(batch, 3, height, width)).astype(np.float32)

    x_a, x_b, xp_a, xp_b = image(), image(), image(), image()
    return {
        "x_a": x_a,
        "x_b": x_b,
        "xp_a": xp_a,
        "xp_b": xp_b,
        "l_a": rng.randint(0, classes, batch),
        "l_b": rng.randint(0, classes, batch),
    }


def ranking_inputs(seed: int, n_id: int, nq: int, ng: int, cams: int, noise: float) -> dict[str, np.ndarray]:
    """[f_prim | f_fine] (N x 1024, unit halves), person and camera ids of query, gallery, multi-query."""
    rng = np.random.RandomState(seed)
    centers = rng.randn(n_id + 2, 1024)  # the last two rows: distractors (id 0) and junk (id -1)
    q_id, q_cam = rng.randint(1, n_id + 1, nq), rng.randint(1, cams + 1, nq)
    pool = np.concatenate([np.arange(1, n_id + 1), np.zeros(n_id // 4, int), -np.ones(n_id // 4, int)])
    g_id = rng.choice(pool, ng)
    g_cam = rng.randint(1, cams + 1, ng)
    m_id, m_cam = np.repeat(q_id, 3), np.repeat(q_cam, 3)

    def features(ids: np.ndarray) -> np.ndarray:
        rows = np.where(ids > 0, ids - 1, np.where(ids == 0, n_id, n_id + 1))
        f = centers[rows] + noise * rng.randn(len(ids), 1024)
        for half in (slice(0, 512), slice(512, 1024)):
            f[:, half] /= np.linalg.norm(f[:, half], axis=1, keepdims=True)
        return f.astype(np.float32)

    q_f, g_f, m_f = features(q_id), features(g_id), features(m_id)
    return {
        "q_f": q_f,
        "q_id": q_id,
        "q_cam": q_cam,
        "g_f": g_f,
        "g_id": g_id,
        "g_cam": g_cam,
        "m_f": m_f,
        "m_id": m_id,
        "m_cam": m_cam,
    }
