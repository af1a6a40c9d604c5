"""Loads an encoder from a source: loads the model, selects an engine, verifies and warms it up."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from serve_app.checkpoints.metadata import Checkpoint, read_checkpoint
from serve_app.checkpoints.source import resolve
from serve_app.encoder import verification
from serve_app.encoder.encoder import Encoder
from serve_app.encoder.engine import (
    DEFAULT_PASS_TOKENS,
    EncoderBrokenError,
    Engine,
    default_batch_tokens,
    streams_for,
)
from serve_app.encoder.torch import TorchEngine, has_changing_positions
from serve_app.encoder.varlen import check_device
from serve_app.encoder.verification import check_model
from serve_app.errors import ModelLoadError
from serve_app.tokenization.tokenizer import Tokenizer

logger = logging.getLogger("ray.serve.embeddings")

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class _CannotConvertError(Exception):
    """OpenVINO cannot run this model; the message says why."""


def load_encoder(  # noqa: PLR0913  # one argument for each model setting that concerns inference
    source: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str = "auto",
    engine: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
    max_batch_tokens: int | None = None,
    padding: str = "auto",
    warm_up: bool = True,
) -> Encoder:
    """Load a model and check it against the metadata in its files.

    Args:
        source: a directory, a Hub id, or `package:NAME/PATH`; see `serve_app.checkpoints.source`.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: whether to run the Python code that comes with the model.
        device: `cpu`, `cuda` or `cuda:1`; `auto` uses a GPU if there is one.
        engine: `torch` or `openvino`; `auto` uses OpenVINO if it is installed and can run the
            model. On a GPU the engine is always torch.
        dtype: precision of weights and arithmetic: `float32`, `float16` or `bfloat16`.
        threads: number of CPU threads for the model; torch's current number if None.
        max_batch_tokens: maximum number of tokens, padding included, in one forward pass;
            `default_batch_tokens` if None.
        padding: `auto` runs without padding if the model, the GPU and the dtype allow it; `always`
            pads.
        warm_up: whether to run a full token budget and a short input before returning.

    Raises:
        ModelLoadError: the model is missing, does not embed, is not supported, or fails in the
            warm-up; or `engine` is `openvino`, and OpenVINO cannot run the model.
    """
    checkpoint = read_checkpoint(source, revision=revision)
    tokenizer = Tokenizer(checkpoint)
    directory = resolve(source, revision=revision, weights=True)
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    budget = max_batch_tokens or default_batch_tokens(device)
    loader = _Loader(
        directory, checkpoint, tokenizer, device, trust_remote_code, threads, budget, padding
    )
    if engine == "torch" or device != "cpu":
        loaded: Engine = loader.torch(dtype)
    else:
        loaded = loader.openvino_or_torch(dtype, must_be_openvino=engine == "openvino")
    pass_tokens = DEFAULT_PASS_TOKENS
    if warm_up:
        pass_tokens = verification.warm_up(Encoder(loaded, checkpoint), tokenizer, budget)
    return Encoder(loaded, checkpoint, max_batch_tokens=budget, pass_tokens=pass_tokens)


@dataclass(frozen=True, slots=True)
class _Loader:
    """Creates engines for one model."""

    directory: Path
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    device: str
    trust_remote_code: bool
    threads: int
    max_batch_tokens: int
    padding: str

    @property
    def streams(self) -> int:
        return streams_for(self.threads, self.max_batch_tokens)

    def torch(self, dtype: str) -> TorchEngine:
        model = _load_model(
            self.directory,
            trust_remote_code=self.trust_remote_code,
            device=self.device,
            dtype=DTYPES[dtype],
        )
        check_model(model, self.checkpoint, self.tokenizer)
        engine = TorchEngine(model, self.checkpoint, threads=self.threads, streams=self.streams)
        if self.device.startswith("cuda") and self.padding == "auto" and engine.pads:
            self._pack_if_possible(engine, dtype)
        return engine

    def _pack_if_possible(self, engine: TorchEngine, dtype: str) -> None:
        """Make an engine run without padding if its vectors stay the same."""
        try:
            check_device(self.device, DTYPES[dtype])
            verification.pack_verified(
                engine, self.checkpoint, verification.probes(self.tokenizer, self.max_batch_tokens)
            )
        except EncoderBrokenError as error:
            raise ModelLoadError(
                f"{self.directory}: the GPU failed without padding; set `padding: always` for this model"
            ) from error
        except Exception as error:  # fall back to padding rather than fail the start
            engine.unpack()
            logger.info("%s: inputs are padded: %r", self.directory, error)

    def openvino_or_torch(self, dtype: str, *, must_be_openvino: bool) -> Engine:
        model: TorchEngine | None = None
        try:
            _check_convertible(self.checkpoint)
            model = self.torch("float32")
            return self._openvino(model, dtype)
        except _CannotConvertError as error:
            if must_be_openvino:
                raise ModelLoadError(
                    f"{self.directory}: engine openvino cannot run this model: {error}"
                ) from error
            logger.info("%s: using engine torch: %s", self.directory, error)
        return model if model is not None and dtype == "float32" else self.torch(dtype)

    def _openvino(self, model: TorchEngine, dtype: str) -> Engine:
        from serve_app.encoder.openvino import OpenVinoEngine, load_graph

        _check_positions(model.modules[0].model.config, self.checkpoint)
        inputs = verification.probes(self.tokenizer, self.max_batch_tokens)
        expected = Encoder(model, self.checkpoint).encode(inputs)
        if expected.failures:
            raise _CannotConvertError("the model fails in torch too")
        problem = ""
        for rebuild in (False, True):  # a cached graph may be damaged or wrong
            try:
                graph = load_graph(model, self.directory, rebuild=rebuild)
                engine = OpenVinoEngine(
                    graph, model, dtype=dtype, threads=self.threads, streams=self.streams
                )
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            actual = Encoder(engine, self.checkpoint).encode(inputs)
            if not actual.failures and verification.agree(
                actual.vectors, expected.vectors, verification.TOLERANCES[engine.precision]
            ):
                logger.info("%s: using engine openvino in %s", self.directory, engine.precision)
                return engine
            problem = "the graph's vectors differ from torch's"
        raise _CannotConvertError(problem)


def _check_convertible(checkpoint: Checkpoint) -> None:
    """Check, before loading the weights, that OpenVINO may be able to run the model."""
    if importlib.util.find_spec("openvino") is None:
        raise _CannotConvertError("openvino is not installed")
    if not checkpoint.adds_special_tokens:
        raise _CannotConvertError("a StaticEmbedding gains nothing from OpenVINO")


def _check_positions(config: Any, checkpoint: Checkpoint) -> None:
    """Check that a graph can produce the same vectors as torch for inputs of every length.

    For a position beyond the position table, torch raises an error, but a graph reads zeros.
    """
    positions = getattr(config, "max_position_embeddings", None)
    limit = checkpoint.max_input_tokens
    if isinstance(positions, int) and positions > 0 and (limit is None or limit > positions):
        raise _CannotConvertError(f"inputs may be longer than the model's {positions} positions")
    if has_changing_positions(config):  # a graph would keep the positions of its example input
        raise _CannotConvertError("the model's rotary positions depend on the input length")


def _load_model(
    directory: Path, *, trust_remote_code: bool, device: str, dtype: torch.dtype
) -> SentenceTransformer:
    for pickled in directory.rglob("pytorch_model*.bin"):
        if not any(pickled.parent.glob("*.safetensors")):
            raise ModelLoadError(
                f"{pickled}: pickled weights are not supported; save the model as safetensors"
            )
    try:
        model = SentenceTransformer(
            str(directory),
            device=device,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            model_kwargs={"use_safetensors": True, "dtype": dtype},
        )
    except Exception as error:
        raise ModelLoadError(
            f"{directory} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if isinstance(model[0], StaticEmbedding):  # its loader takes no dtype
        model.to(dtype)
    return model
