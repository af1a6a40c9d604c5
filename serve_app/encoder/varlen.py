"""Passes without padding: inputs lie one after the other in one row, and each attends to itself alone.

For models of transformers' own code that look up their attention by name; under ours they find PyTorch's attention for
inputs of many lengths, which needs a GPU and half precision. Pooling reads such a row as sentence-transformers made it
for flash attention.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from serve_app.encoder.engine import Features

NAME = "packed"
# The first generation of GPUs that have the kernel.
_LEAST_CAPABILITY = (8, 0)
# What reaches attention through the model, beside what its forward names.
_PASSED_ON = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}

Attention = Callable[..., Any]


class CannotPackError(Exception):
    """This model stays with padding; the message says why."""


def check_device(device: str, dtype: torch.dtype) -> None:
    """Return if a device has the kernel for a type.

    Raises:
        CannotPackError: it has none.
    """
    if dtype == torch.float32:
        raise CannotPackError("float32 has no attention without padding")
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        raise CannotPackError("the GPU is too old for attention without padding")


class PackedSequences:
    """A Transformer module that reads rows of inputs, until it is told to `unpack`.

    Args:
        transformer: sentence-transformers' module; changed in place.
        attention: computes what `varlen_attn` does.

    Raises:
        CannotPackError: its model does not take another attention.
    """

    def __init__(self, transformer: Any, *, attention: Attention = varlen_attn) -> None:
        self._model = transformer.model
        if not self._model.is_backend_compatible():
            raise CannotPackError("its attention cannot be replaced")
        AttentionInterface.register(NAME, _attending(attention))
        AttentionMaskInterface.register(NAME, _no_mask)
        self._padded_attention = self._model.config._attn_implementation
        self._model.set_attn_implementation(NAME)
        if self._model.config._attn_implementation != NAME:
            raise CannotPackError("its attention cannot be replaced")
        if transformer.model_forward_params is not None:
            transformer.model_forward_params |= _PASSED_ON
        self._first_position = _first_position(self._model)

    def unpack(self) -> None:
        """Give the model its own attention back."""
        self._model.set_attn_implementation(self._padded_attention)

    def tensors(
        self, features: Features, on_device: Callable[[npt.NDArray[Any]], torch.Tensor]
    ) -> Mapping[str, Any]:
        """Return what the Transformer and the Pooling read, beside token types and the prompt's length."""
        lengths, starts = features.lengths, features.starts
        positions = np.arange(len(features.ids)) - np.repeat(starts, lengths)
        bounds = on_device(np.append(starts, len(features.ids)).astype(np.int32))
        longest = int(lengths.max())
        owners = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        return {
            "input_ids": on_device(features.ids[None]),
            "position_ids": on_device(positions[None] + self._first_position),
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": longest,
            "max_length_k": longest,
            "seq_idx": on_device(owners[None]),
        }


def _attending(attention: Attention) -> Callable[..., tuple[torch.Tensor, None]]:
    def attend(  # noqa: PLR0913  # as transformers calls it
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        cu_seq_lens_q: torch.Tensor,
        max_length_q: int,
        scaling: float | None = None,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attend as transformers asks for it: from [1, heads, tokens, width] to [1, tokens, heads, width]."""
        extras = (others.get(name) for name in ("softcap", "s_aux", "position_bias"))
        if attention_mask is not None or any(extra is not None for extra in extras):
            raise NotImplementedError("attention without padding knows no mask, bias or sink")
        causal = module.is_causal if is_causal is None else is_causal
        reach = -1 if sliding_window is None else sliding_window - 1
        rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        attended = attention(
            *rows,
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            scale=scaling,
            window_size=(reach, 0 if causal else reach),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return attended[None], None

    return attend


def _no_mask(*_: Any, **__: Any) -> None:
    """Make no mask: what is masked elsewhere is not there."""


def _first_position(model: Any) -> int:
    """Return the number of an input's first position: RoBERTa and its kin count from behind that of padding."""
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding):
            return 0 if table.padding_idx is None else table.padding_idx + 1
    return 0
