"""Post-processes a model's vectors: truncates dimensions and normalizes."""

import numpy as np

from serve_app.messages import Vectors


def finish(vectors: Vectors, *, dimensions: int | None, normalize: bool) -> Vectors:
    """Keep the first components of each row, then scale each row to unit length.

    A row of zeros is left unchanged, as in `torch.nn.functional.normalize`.

    Args:
        vectors: float32 [inputs, native dimensions]; not modified.
        dimensions: the number of components to keep; None keeps all.
        normalize: whether to scale rows to unit length.

    Returns:
        float32 [inputs, dimensions], contiguous.
    """
    kept = np.ascontiguousarray(vectors[:, :dimensions])
    if not normalize:
        return kept
    lengths = np.sqrt(np.einsum("ij,ij->i", kept, kept, dtype=np.float64))
    scaled: Vectors = (kept / np.maximum(lengths, 1e-12)[:, None]).astype(np.float32)
    return scaled
