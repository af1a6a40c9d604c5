"""A slow `varlen_attn` for any device: it attends to one input at a time. PyTorch's needs a GPU."""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


def one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    _key_bounds: torch.Tensor,
    _longest: int,
    _longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """Attend within each input; query, key, value and result are [tokens, heads, width]."""
    rows: list[Any] = []
    before, after = window_size
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        positions = torch.arange(stop - start)
        distance = positions[None] - positions[:, None]  # key position minus query position
        visible = torch.ones_like(distance, dtype=torch.bool)
        if before >= 0:
            visible[distance < -before] = False
        if after >= 0:
            visible[distance > after] = False
        q, k, v = (tensor[start:stop].transpose(0, 1)[None] for tensor in (query, key, value))
        output = scaled_dot_product_attention(
            q, k, v, attn_mask=visible, scale=scale, enable_gqa=enable_gqa
        )
        rows.append(output[0].transpose(0, 1))
    return torch.cat(rows)
