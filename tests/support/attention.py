"""What `varlen_attn` does, one input at a time and on any device: it needs a GPU itself."""

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
    """Attend within each input: [tokens, heads, width] of all inputs, one after the other."""
    rows: list[Any] = []
    before, after = window_size
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        places = torch.arange(stop - start)
        distance = places[None] - places[:, None]  # from the one that looks to the one that is seen
        seen = torch.ones_like(distance, dtype=torch.bool)
        if before >= 0:
            seen &= distance >= -before
        if after >= 0:
            seen &= distance <= after
        q, k, v = (tensor[start:stop].transpose(0, 1)[None] for tensor in (query, key, value))
        attended = scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        rows.append(attended[0].transpose(0, 1))
    return torch.cat(rows)
