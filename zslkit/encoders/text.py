"""Text towers: transformers models, pooled as their cards say."""

import torch
from torch import Tensor, nn

from zslkit.zeroshot.models.texts import PACKAGED_TEXT_ENCODERS as PACKAGED_TEXT_ENCODERS
from zslkit.zeroshot.models.texts import TextFiles, count_prompt_tokens, load_text_net


class TextTower(nn.Module):
    """A transformers encoder whose tokens are pooled: their mean, unless its card says else."""

    def __init__(self, name: str, weights: str, max_tokens: int):
        super().__init__()
        self.name, self.max_tokens = name, max_tokens
        self.tokenizer, self.net, self.card = load_text_net(name, weights)
        self.prompt_tokens = count_prompt_tokens(self.tokenizer, self.card)
        self.files = TextFiles(self.net.config, self.tokenizer, self.card)
        self.feature_dim = self.net.config.hidden_size

    def tokens(self, texts: list[str]) -> dict[str, Tensor]:
        """Give the network's inputs for B texts, (B, L) each, on its device."""
        options = {"padding": True, "truncation": True, "max_length": self.max_tokens}
        texts = [self.card.prompt + text for text in texts]
        tokens = self.tokenizer(texts, return_tensors="pt", **options)
        return tokens.to(next(self.net.parameters()).device)

    def forward(self, texts: list[str]) -> Tensor:
        """Map B texts to (B, F) features; padding never counts.

        On a CPU texts of a step are embedded in groups of similar length, which saves padding; an
        accelerator is better off with one call, and what is embedded for a cache comes sorted.
        """
        if torch.is_inference_mode_enabled() or next(self.parameters()).device.type != "cpu":
            return self._embed(texts)
        order, size = torch.tensor([*map(len, texts)]).argsort(stable=True), 8 + len(texts) // 4
        # few groups: each has a gradient for every word there is
        parts = [self._embed([texts[i] for i in group]) for group in order.split(size)]
        return torch.cat(parts).index_select(0, order.argsort())

    def _embed(self, texts: list[str]) -> Tensor:
        tokens = self.tokens(texts)
        hidden = self.net(**tokens).last_hidden_state
        return self.card.pool(hidden, tokens["attention_mask"], self.prompt_tokens)
