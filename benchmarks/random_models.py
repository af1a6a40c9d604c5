"""Models of well-known sizes with random weights: as fast as the real ones, built on the spot, nothing downloaded.

A BERT with a word-piece tokenizer, a pooling and a Normalize, saved as sentence-transformers saves a model.
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
        layers: its layers.
        width: components of a token between them.
        heads: attention heads.
    """

    layers: int
    width: int
    heads: int

    @property
    def feed_forward(self) -> int:
        """Components inside a layer's second half."""
        return 4 * self.width

    def flops(self, lengths: list[int]) -> int:
        """Return the multiplications and additions that texts need at least, padding not counted.

        Per token and layer: 2 for each weight of the matrices (4 of width by width for attention, 2 of width by
        feed_forward), and 2 for each component of each pair of tokens, once for the scores and once for the sums.
        """
        weights = 4 * self.width**2 + 2 * self.width * self.feed_forward
        return self.layers * sum(
            2 * weights * tokens + 4 * self.width * tokens**2 for tokens in lengths
        )


# Of all-MiniLM-L6-v2, and of BAAI's bge-small, bge-base and bge-large, version 1.5, by their config.json.
SIZES = {
    "minilm": Size(layers=6, width=384, heads=12),
    "small": Size(layers=12, width=384, heads=12),
    "base": Size(layers=12, width=768, heads=12),
    "large": Size(layers=24, width=1024, heads=16),
}


def build(size: Size, folder: Path, *, spread: float = 0.02, pooling: str = "cls") -> Path:
    """Write a model into a folder and return the directory to load it from.

    Args:
        size: its shape.
        folder: an empty one.
        spread: the standard deviation of its weights. With BERT's own 0.02 all texts have nearly the same vector.
        pooling: how tokens become a vector, in sentence-transformers' words.
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
    """Return special tokens, every character, and the words of the benchmark's prose, filled up to BERT's size."""
    characters = list(string.ascii_lowercase + string.digits + string.punctuation)
    pieces = [f"##{character}" for character in characters]
    known = [*_SPECIAL, *characters, *pieces, *all_words()]
    known = list(dict.fromkeys(known))
    return known + [f"[unused{index}]" for index in range(_VOCABULARY - len(known))]
