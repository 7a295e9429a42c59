"""A small text encoder, trained from scratch, that needs no vocabulary and no download.

Dimensions: B = texts, L = words of the longest text, U = distinct words, W = feature_dim.
"""

import re
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


def word_buckets(word: str, n_buckets: int) -> list[int]:
    """Hash a word and its 3- to 5-character n-grams into embedding rows.

    The word is framed as ``<word>``, so that ``redstar`` shares ``<red`` with ``red`` and
    ``star>`` with ``star``. crc32, unlike Python's ``hash``, is the same in every process.

    Parameters
    ----------
    word : str
        One word.
    n_buckets : int
        Number of embedding rows.

    Returns
    -------
    list of int
        Row of the whole word, then of its n-grams, short ones first.

    References
    ----------
    Bojanowski et al. (2017), "Enriching Word Vectors with Subword Information",
    arXiv:1607.04606, section 3.2.
    """
    framed = f"<{word}>"
    sizes = range(3, min(6, len(framed)))  # below len: the whole word is there already
    ngrams = [framed[i : i + size] for size in sizes for i in range(len(framed) - size + 1)]
    return [crc32(piece.encode()) % n_buckets for piece in (framed, *ngrams)]


class SmallTextEncoder(nn.Module):
    """Mean of hashed subword embeddings per word, transformer layers, mean over words.

    Parameters
    ----------
    feature_dim : int
        Width W of embeddings, layers and output.
    max_tokens : int
        Words after this many are cut off.
    n_buckets : int
        Rows of the embedding table.
    n_layers : int
        Transformer layers; 0 averages the words alone.
    n_heads : int
        Attention heads.

    Raises
    ------
    ValueError
        If feature_dim is not a multiple of n_heads.
    """

    def __init__(
        self,
        feature_dim: int = 128,
        max_tokens: int = 32,
        n_buckets: int = 8192,
        n_layers: int = 1,
        n_heads: int = 4,
    ):
        super().__init__()
        if feature_dim % n_heads:
            raise ValueError(f"feature_dim={feature_dim} must be a multiple of n_heads={n_heads}")
        self.feature_dim, self.max_tokens, self.n_buckets = feature_dim, max_tokens, n_buckets
        self.subwords = nn.EmbeddingBag(n_buckets, feature_dim, mode="mean")
        self.positions = nn.Parameter(0.02 * torch.randn(max_tokens, feature_dim))
        shape = (feature_dim, n_heads, 2 * feature_dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(*shape, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(feature_dim)
        self._rows: dict[str, list[int]] = {}  # word → buckets, hashed once

    def forward(self, texts: list[str]) -> Tensor:
        """Encode B texts as features (B, feature_dim), not normalised.

        Case and punctuation are ignored; a text without words counts as one empty word.
        """
        device = self.positions.device
        number: dict[str, int] = {}  # word → its place among the U distinct ones
        split = [re.findall(r"\w+", text.lower())[: self.max_tokens] or [""] for text in texts]
        places = [torch.tensor([number.setdefault(w, len(number)) for w in ws]) for ws in split]
        index = pad_sequence(places, batch_first=True, padding_value=-1).to(device)  # (B, L)
        valid = index >= 0

        for word in number.keys() - self._rows.keys():
            self._rows[word] = word_buckets(word, self.n_buckets)
        bags = [torch.tensor(self._rows[word]) for word in number]
        starts = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
        words = self.subwords(torch.cat(bags).to(device), starts.to(device))  # (U, W)

        hidden = words[index.clamp(min=0)] + self.positions[: index.shape[1]]  # (B, L, W)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=~valid)
        hidden = self.norm(hidden).masked_fill(~valid[..., None], 0)
        return hidden.sum(1) / valid.sum(1, keepdim=True)
