"""A small text encoder, trained from scratch, that needs no vocabulary file and no download.

Dimensions: B = texts, L = words of the longest text, U = distinct words in the batch, W = width.
"""

import re
from zlib import crc32

import torch
from torch import Tensor, nn


def word_buckets(word: str, n_buckets: int, shortest: int = 3, longest: int = 5) -> list[int]:
    """Hash a word and its character n-grams into buckets.

    The word is framed as ``<word>``, so that beginnings and ends are n-grams of their own and a
    compound such as ``redstar`` shares buckets with ``red`` and with ``star``. crc32 is the same
    in every process, which Python's ``hash`` is not.

    Parameters
    ----------
    word : str
        One word, lower case.
    n_buckets : int
        Number of rows of the embedding table.
    shortest, longest : int
        Range of n-gram lengths, in characters, both included.

    Returns
    -------
    list of int
        Bucket of the whole word, then those of its n-grams from left to right.

    References
    ----------
    Bojanowski et al. (2017), "Enriching Word Vectors with Subword Information",
    arXiv:1607.04606, section 3.2.
    """
    framed = f"<{word}>"
    pieces = [framed] + [
        framed[start : start + length]
        for length in range(shortest, longest + 1)
        for start in range(len(framed) - length + 1)
        if length < len(framed)  # the whole word is there already
    ]
    return [crc32(piece.encode()) % n_buckets for piece in pieces]


class SmallTextEncoder(nn.Module):
    """Hashed subword embeddings, a few transformer layers, mean over the words.

    Parameters
    ----------
    feature_dim : int
        Width W of embeddings, layers and output.
    max_tokens : int
        Words after this many are cut off.
    n_buckets : int
        Rows of the hashed embedding table.
    n_layers : int
        Transformer layers; 0 averages word embeddings.
    n_heads : int
        Attention heads; must divide feature_dim.

    Raises
    ------
    ValueError
        If max_tokens or n_buckets is below 1 or n_heads does not divide feature_dim.
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
        for name, value in (("max_tokens", max_tokens), ("n_buckets", n_buckets)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if feature_dim % n_heads:
            raise ValueError(f"n_heads={n_heads} must divide feature_dim={feature_dim}")
        self.feature_dim, self.max_tokens, self.n_buckets = feature_dim, max_tokens, n_buckets
        self.subwords = nn.EmbeddingBag(n_buckets, feature_dim, mode="mean")
        self.positions = nn.Parameter(0.02 * torch.randn(max_tokens, feature_dim))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                feature_dim, n_heads, 2 * feature_dim, 0.0, batch_first=True, norm_first=True
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(feature_dim)
        self._buckets: dict[str, list[int]] = {}  # grows with the words met, not with the texts

    def forward(self, texts: list[str]) -> Tensor:
        """Encode texts.

        Parameters
        ----------
        texts : list of str
            B texts; case is ignored, punctuation separates words. A text without words counts
            as one empty word.

        Returns
        -------
        Tensor of shape (B, feature_dim), float
            On the module's device; not normalised.
        """
        device = self.positions.device
        numbers: dict[str, int] = {}  # word → row of the U distinct words: each is embedded once
        rows = [
            [numbers.setdefault(word, len(numbers)) for word in self._words(text)] for text in texts
        ]
        lengths = torch.tensor([len(row) for row in rows])
        index = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True)
        valid = (torch.arange(index.shape[1]) < lengths[:, None]).to(device)  # (B, L)

        bags = [self._bag(word) for word in numbers]
        starts = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
        flat = torch.tensor([bucket for bag in bags for bucket in bag])
        words = self.subwords(flat.to(device), starts.to(device))  # (U, W)
        hidden = words[index.to(device)] + self.positions[: index.shape[1]]  # (B, L, W)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=~valid)
        hidden = self.norm(hidden) * valid[..., None]
        return hidden.sum(1) / valid.sum(1, keepdim=True)

    def _words(self, text):
        return re.findall(r"\w+", text.lower())[: self.max_tokens] or [""]

    def _bag(self, word):
        if word not in self._buckets:
            self._buckets[word] = word_buckets(word, self.n_buckets)
        return self._buckets[word]
