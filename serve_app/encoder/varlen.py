"""Forward passes without padding: inputs are packed into one row, and each attends only to itself.

Models in transformers look up their attention function by name. This module registers PyTorch's
varlen (variable-length) attention, which needs a GPU and half precision, under the name `packed`.
The packed row has the layout that sentence-transformers uses for flash attention, so
sentence-transformers' Pooling can read it.

Models with custom code are not supported.
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
# The kernel needs at least this CUDA compute capability.
_MIN_CAPABILITY = (8, 0)
# Arguments that the model passes on to attention although its `forward` does not name them.
_EXTRA_ARGUMENTS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}

Attention = Callable[..., Any]


class CannotPackError(Exception):
    """The model cannot run without padding; the message says why."""


def check_device(device: str, dtype: torch.dtype) -> None:
    """Check that a GPU has the varlen attention kernel for a dtype.

    Raises:
        CannotPackError: the GPU has no such kernel.
    """
    if dtype == torch.float32:
        raise CannotPackError("varlen attention does not support float32")
    if torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        raise CannotPackError("varlen attention needs a GPU of compute capability 8.0 or higher")


class PackedSequences:
    """Makes a Transformer module read packed inputs, until `unpack` is called.

    Args:
        transformer: sentence-transformers' module; changed in place.
        attention: a function with the signature and result of `varlen_attn`.

    Raises:
        CannotPackError: the model's attention cannot be replaced.
    """

    def __init__(self, transformer: Any, *, attention: Attention = varlen_attn) -> None:
        self._model = transformer.model
        if not self._model.is_backend_compatible():
            raise CannotPackError("the model's attention cannot be replaced")
        AttentionInterface.register(NAME, _attention_function(attention))
        AttentionMaskInterface.register(NAME, _no_mask)
        self._padded_attention = self._model.config._attn_implementation
        self._model.set_attn_implementation(NAME)
        if self._model.config._attn_implementation != NAME:
            raise CannotPackError("the model's attention cannot be replaced")
        if transformer.model_forward_params is not None:
            transformer.model_forward_params |= _EXTRA_ARGUMENTS
        self._first_position = _first_position(self._model)

    def unpack(self) -> None:
        """Restore the model's original attention implementation."""
        self._model.set_attn_implementation(self._padded_attention)

    def tensors(
        self, features: Features, on_device: Callable[[npt.NDArray[Any]], torch.Tensor]
    ) -> Mapping[str, Any]:
        """Return the features that the Transformer and the Pooling read.

        The caller adds the token type ids and the prompt length.
        """
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


def _attention_function(attention: Attention) -> Callable[..., tuple[torch.Tensor, None]]:
    def attend(  # noqa: PLR0913  # transformers defines the signature
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
        """Map tensors [1, heads, tokens, width] to an output [1, tokens, heads, width]."""
        extras = (others.get(name) for name in ("softcap", "s_aux", "position_bias"))
        if attention_mask is not None or any(extra is not None for extra in extras):
            raise NotImplementedError("varlen attention supports no mask, bias or sink")
        causal = module.is_causal if is_causal is None else is_causal
        window = -1 if sliding_window is None else sliding_window - 1
        rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        output = attention(
            *rows,
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            scale=scaling,
            window_size=(window, 0 if causal else window),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output[None], None

    return attend


def _no_mask(*_: Any, **__: Any) -> None:
    """Return None: packed inputs have no padding to mask."""


def _first_position(model: Any) -> int:
    """Return an input's first position id.

    It is 0, except in models like RoBERTa, where it is the padding id plus one.
    """
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding):
            return 0 if table.padding_idx is None else table.padding_idx + 1
    return 0
