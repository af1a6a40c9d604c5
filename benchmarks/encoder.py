"""Benchmark the encoder without Ray: `python -m benchmarks.encoder --device cuda`.

For models of well-known sizes with random weights, it compares the bare forward pass on batches that are already on the
device (the ceiling), this project's encoder, and `SentenceTransformer.encode`. It imports no Ray and downloads
nothing.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.prose import Prose
from benchmarks.random_models import SIZES, Size, build
from benchmarks.workloads import SEED, log_normal
from serve_app.encoder import Encoder, default_batch_tokens, load_encoder
from serve_app.encoder.loading import DTYPES
from serve_app.messages import TokenizedInputs

_BATCH = 32
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """The speed of one method on one kind of texts; medians of the repeats.

    Attributes:
        model: the name of the model's size.
        texts: the kind of texts.
        way: the method and its dtype.
        tokens_per_s: tokens per second, excluding padding.
        tflops: useful TFLOP/s, excluding padding.
        least_cosine: lowest cosine similarity to `SentenceTransformer.encode` in float32. None for the bare
            forward pass.
    """

    model: str
    texts: str
    way: str
    texts_per_s: float
    tokens_per_s: float
    tflops: float
    least_cosine: float | None


@dataclass(frozen=True, slots=True)
class _Case:
    """Texts of one kind for one model."""

    model: str
    size: Size
    texts: str
    sentences: Sequence[str]
    ids: Sequence[Sequence[int]]

    @property
    def lengths(self) -> list[int]:
        return [len(one) for one in self.ids]

    def figure(self, way: str, seconds: float, cosine: float | None = None) -> Figure:
        lengths = self.lengths
        return Figure(
            self.model,
            self.texts,
            way,
            len(lengths) / seconds,
            sum(lengths) / seconds,
            self.size.flops(lengths) / seconds / 1e12,
            cosine,
        )


def padded(rows: Sequence[Any], device: str) -> dict[str, torch.Tensor]:
    """Return token ids, padded on the right, as the input of a forward pass on a device."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.as_tensor(row)
        mask[index, : len(row)] = 1
    tensors = {"input_ids": ids}
    # Attention takes its fastest path without a mask, so the mask is left out if there is no padding.
    if not bool(mask.all()):
        tensors["attention_mask"] = mask
    return {name: tensor.to(device) for name, tensor in tensors.items()}


class _Bench:
    """Measures one model on one device, in one dtype and in float32."""

    def __init__(self, directory: Path, *, device: str, dtype: str) -> None:
        self._device, self._dtype = device, dtype
        self._library = SentenceTransformer(str(directory), device=device)
        self._half = SentenceTransformer(
            str(directory), device=device, model_kwargs={"dtype": DTYPES[dtype]}
        )
        self._encoder: Encoder = load_encoder(str(directory), device=device, dtype=dtype)

    def run(self, case: _Case) -> list[Figure]:
        """Measure each method with the same texts."""
        expected, library_s = self._timed(lambda: self._encode_with_library(self._library, case))
        half, half_s = self._timed(lambda: self._encode_with_library(self._half, case))
        inputs = TokenizedInputs(
            np.concatenate([np.array(one, np.int32) for one in case.ids]),
            np.array(case.lengths, np.int32),
        )
        encoded, encoder_s = self._timed(lambda: self._encoder.encode([inputs]))
        assert not encoded.failures, encoded.failures
        bare_s = min(self._bare_seconds(case, texts) for texts in self._batch_sizes(case))
        dtype = self._dtype
        return [
            case.figure(f"bare forward, {dtype}", bare_s),
            case.figure(f"this encoder, {dtype}", encoder_s, _cosine(encoded.vectors, expected)),
            case.figure(f"SentenceTransformer.encode, {dtype}", half_s, _cosine(half, expected)),
            case.figure("SentenceTransformer.encode, float32", library_s, 1.0),
        ]

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """Return the work's result and its median duration in seconds, after one warm-up call."""
        work()
        durations = []
        for _ in range(_REPEATS):
            self._synchronize()
            start = time.perf_counter()
            result = work()
            self._synchronize()
            durations.append(time.perf_counter() - start)
        return result, float(np.median(durations))

    def _synchronize(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize()

    @staticmethod
    def _encode_with_library(model: SentenceTransformer, case: _Case) -> Any:
        return model.encode(list(case.sentences), batch_size=_BATCH).astype(np.float32)

    def _batch_sizes(self, case: _Case) -> set[int]:
        """Return the batch sizes to try: the library's, and the one that fills a token budget with the longest text."""
        budget = default_batch_tokens(self._device) // max(case.lengths)
        return {_BATCH, max(budget, 1)}

    def _bare_seconds(self, case: _Case, texts: int) -> float:
        batches = self._batches_on_device(case, texts)
        return self._timed(lambda: self._bare_forward(batches))[1]

    def _batches_on_device(self, case: _Case, texts: int) -> list[dict[str, torch.Tensor]]:
        """Pad batches of texts of similar length, so that the ceiling computes little padding."""
        ordered = sorted(case.ids, key=len)
        return [
            padded(ordered[start : start + texts], self._device)
            for start in range(0, len(ordered), texts)
        ]

    def _bare_forward(self, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
        transformer: Any = self._half[0]
        with torch.inference_mode():
            for batch in batches:
                transformer.model(**batch)


def _cosine(vectors: Any, expected: Any) -> float:
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((vectors * expected).sum(axis=1) / lengths).min())


def _cases(model: str, directory: Path, *, count: int) -> list[_Case]:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    prose = Prose(tokenizer, seed=SEED)
    generator = random.Random(SEED)
    kinds = {
        "12 tokens": [12] * count * 4,
        "6 to 256 tokens": [log_normal(generator) for _ in range(count * 2)],
        "512 tokens": [512] * count,
    }
    cases = []
    for kind, lengths in kinds.items():
        sentences = prose.texts(lengths)
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(sentences)]
        cases.append(_Case(model, SIZES[model], kind, sentences, ids))
    return cases


def _line(figure: Figure) -> str:
    return _row(
        figure.model,
        figure.texts,
        figure.way,
        f"{figure.texts_per_s:.1f}",
        f"{figure.tokens_per_s:.0f}",
        f"{figure.tflops:.3f}",
        "" if figure.least_cosine is None else f"{figure.least_cosine:.6f}",
    )


def _row(model: str, texts: str, way: str, *figures: str) -> str:
    return " | ".join(
        [f"| {model:5}", f"{texts:15}", f"{way:36}", *(f"{one:>9}" for one in figures), ""]
    ).rstrip(" ")


def main() -> None:
    """Measure and print a table. `--json FILE` also writes the figures to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument(
        "--texts",
        type=int,
        help="number of 512-token texts; mixed texts are 2 times and 12-token texts 4 times as many",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    on_gpu = arguments.device.startswith("cuda")
    hardware = (
        torch.cuda.get_device_name(arguments.device)
        if on_gpu
        else f"{torch.get_num_threads()} threads"
    )
    versions = f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    print(f"{arguments.device}: {hardware}; {versions}\n")
    print(_row("model", "texts", "method", "texts/s", "tokens/s", "TFLOP/s", "cosine"))
    print(_row("-----", "-----", "---", "------:", "-------:", "------:", "-----:"))
    figures: list[Figure] = []
    for name in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            directory = build(SIZES[name], Path(folder))
            bench = _Bench(directory, device=arguments.device, dtype=arguments.dtype)
            for case in _cases(name, directory, count=arguments.texts or (512 if on_gpu else 8)):
                measured = bench.run(case)
                print("\n".join(map(_line, measured)), flush=True)
                figures += measured
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))


if __name__ == "__main__":
    main()
