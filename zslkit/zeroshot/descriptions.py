"""Texts about classes from a local language model, kept in a file that people read and edit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zslkit.data.files import portable, write_json
from zslkit.data.strict import Strict, explain

QUESTION = (
    "Q: What are useful visual features for recognising a lemur in a photo?\n"
    "A: four hands, a long tail with rings, large eyes, thick fur\n\n"
    "Q: What are useful visual features for recognising a {} in a photo?\n"
    "A:"
)
"""One example, one question: a model without instruction training goes on in its manner."""


class DescriptionFile(Strict):
    """What a file of descriptions holds; ``classes`` is there to be edited."""

    model: str
    """Language model that wrote the texts: a hub name or the name of a folder."""
    prompt: str
    """Question with {} for the class name."""
    classes: dict[str, tuple[str, ...]]
    """Texts of each class; a class whose texts were all struck out stays without."""


def describe_classes(
    class_names: Sequence[str],
    model: str | Path,
    cache_file: str | Path,
    prompt: str = QUESTION,
    n: int = 1,
    max_new_tokens: int = 60,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, tuple[str, ...]]:
    """Ask a language model what classes look like; only about those the file does not hold.

    Parameters
    ----------
    class_names : sequence of str
        Classes to describe.
    model : str or path
        Folder of a causal language model of transformers, or its hub name. One with a chat
        template is asked through it.
    cache_file : path
        JSON that is read first and written after each batch. What stands there, by the model or
        by hand, is never written again.
    prompt : str
        Question with ``{}`` for the class name.
    n : int
        Answers to one question: 1 takes the likeliest words, more are sampled with ``seed``;
        equal and empty ones are dropped.
    max_new_tokens : int
        Length of an answer; its first paragraph is kept.
    batch_size : int
        Classes asked about at once, and at most so many are lost to an interrupt.
    device : str
        Where the model runs.

    Returns
    -------
    dict from class name to tuple of str
        For ``build_class_bank(..., descriptions=...)``, in the order of ``class_names``.

    Raises
    ------
    ValueError
        If the prompt has no ``{}``, ``n`` is below 1, or the file is not one of these or was
        written by another model or with another prompt.
    OSError
        If the model cannot be loaded.

    References
    ----------
    Menon and Vondrick (2022), arXiv:2210.07183, section 2 (the question); Pratt et al. (2022),
    arXiv:2209.03320, section 3 (several sampled answers).
    """
    if "{}" not in prompt or n < 1:
        raise ValueError(f"prompt={prompt!r} must hold {{}} and n={n} be at least 1")
    path, asked = Path(cache_file), {"model": portable(str(model)), "prompt": prompt}
    classes = _read(path, asked)
    missing = [name for name in dict.fromkeys(class_names) if name not in classes]
    tokenizer, net = _load(str(model), device) if missing else (None, None)
    for start in range(0, len(missing), batch_size):
        names = missing[start : start + batch_size]
        questions = [prompt.replace("{}", name) for name in names]
        answers = _answers(tokenizer, net, questions, n, max_new_tokens, seed + len(classes))
        classes.update(zip(names, answers, strict=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**asked, "classes": classes})
    return {name: classes[name] for name in class_names}


def _read(path: Path, asked: dict[str, str]) -> dict[str, tuple[str, ...]]:
    if not path.is_file():
        return {}
    try:
        found = DescriptionFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"cache_file={str(path)!r}: {explain(error)}") from None
    for name, value in asked.items():
        if getattr(found, name) != value:
            raise ValueError(
                f"{name}={value!r}: cache_file={str(path)!r} holds texts written with "
                f"{getattr(found, name)!r}; give that, or another file"
            )
    return found.classes


def _load(name: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        # answers are to begin where questions end: short questions are padded on the left
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
        net = AutoModelForCausalLM.from_pretrained(name).to(device).eval()
    except (OSError, ValueError) as error:
        raise OSError(
            f"model={name!r}: neither a folder with a causal language model nor a name that could "
            f"be loaded from the hub ({str(error).splitlines()[0]})"
        ) from error
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer, net


def _answers(
    tokenizer: Any, net: Any, questions: list[str], n: int, max_new_tokens: int, seed: int
) -> list[tuple[str, ...]]:
    """Give up to ``n`` answers to each question, each in one line."""
    import torch

    if chat := tokenizer.chat_template is not None:
        turns = [[{"role": "user", "content": question}] for question in questions]
        questions = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    # a chat template has written the special tokens
    tokens = tokenizer(questions, padding=True, return_tensors="pt", add_special_tokens=not chat)
    choice = {"do_sample": True, "num_return_sequences": n} if n > 1 else {"do_sample": False}
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(seed)
        written = net.generate(
            **tokens.to(net.device),
            **choice,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )[:, tokens["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    lines = [" ".join(text.strip().split("\n\n")[0].split()) for text in texts]
    return [
        tuple(filter(None, dict.fromkeys(lines[row : row + n]))) for row in range(0, len(lines), n)
    ]
