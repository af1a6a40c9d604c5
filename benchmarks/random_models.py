"""Build models of well-known sizes with random weights.

They are as fast as the real models and need no download. Each is a BERT with a WordPiece tokenizer,
a pooling module and a Normalize module, saved in the sentence-transformers format.
"""

import string
from dataclasses import dataclass
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizerFast

from benchmarks.prose import all_words

MAX_TOKENS = 512
_VOCABULARY = 30522
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, slots=True)
class Size:
    """The shape of a BERT.

    Attributes:
        layers: number of layers.
        width: hidden size.
        heads: attention heads per layer.
    """

    layers: int
    width: int
    heads: int

    @property
    def feed_forward(self) -> int:
        """The intermediate size of a layer's feed-forward block."""
        return 4 * self.width

    def flops(self, lengths: list[int]) -> int:
        """Return the FLOPs needed to encode texts of these token lengths, excluding padding.

        Each token costs 2 FLOPs per weight in each layer: attention has four matrices of width x width,
        the feed-forward block two of width x feed_forward. Each pair of tokens costs 2 FLOPs per component
        twice: once for the attention scores and once for the weighted sums.
        """
        weights = 4 * self.width**2 + 2 * self.width * self.feed_forward
        return self.layers * sum(
            2 * weights * tokens + 4 * self.width * tokens**2 for tokens in lengths
        )


# From the config.json of all-MiniLM-L6-v2 and of BAAI's bge-small, bge-base and bge-large, version 1.5.
SIZES = {
    "minilm": Size(layers=6, width=384, heads=12),
    "small": Size(layers=12, width=384, heads=12),
    "base": Size(layers=12, width=768, heads=12),
    "large": Size(layers=24, width=1024, heads=16),
}


def build(size: Size, folder: Path, *, spread: float = 0.02, pooling: str = "cls") -> Path:
    """Write a model and return the directory to load it from.

    Args:
        size: the model's shape.
        folder: an empty folder.
        spread: the standard deviation of the weights. With BERT's default of 0.02, all texts get nearly
            the same vector.
        pooling: the pooling mode, as named by sentence-transformers.
    """
    bare, finished = folder / "bare", folder / "model"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.feed_forward,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=spread,
    )
    BertModel(config).save_pretrained(bare)
    vocabulary = {token: index for index, token in enumerate(_vocabulary())}
    BertTokenizerFast(vocab=vocabulary, model_max_length=MAX_TOKENS).save_pretrained(bare)
    transformer = Transformer(str(bare))
    modules = [transformer, Pooling(size.width, pooling_mode=pooling), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(finished))
    return finished


def _vocabulary() -> list[str]:
    """Return the special tokens, all characters and the words of the prose, padded to BERT's vocabulary size."""
    characters = list(string.ascii_lowercase + string.digits + string.punctuation)
    pieces = [f"##{character}" for character in characters]
    known = [*_SPECIAL, *characters, *pieces, *all_words()]
    known = list(dict.fromkeys(known))
    return known + [f"[unused{index}]" for index in range(_VOCABULARY - len(known))]
