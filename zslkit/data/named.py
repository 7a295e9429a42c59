"""The pairs and images that a configuration names: the one way to open them."""

from zslkit.config import RunConfig
from zslkit.data.pairs import Pairs, open_pairs
from zslkit.data.review import read_decisions


def training_pairs(config: RunConfig) -> Pairs:
    """Open the pairs that a run trains on: its split, draw of ``max_pairs``, noise and decisions.

    Parameters
    ----------
    config : RunConfig
        ``manifest``, ``data_root``, ``train_split``, ``max_pairs``, ``caption_noise``, ``seed``
        and ``review``, which is about the captions after all of these.

    Raises
    ------
    ValueError, FileNotFoundError
        As :func:`zslkit.open_pairs`.
    """
    pairs = open_pairs(
        config.manifest,
        config.train_split,
        **config.source,
        caption_noise=config.caption_noise,
        caption_noise_kind=config.caption_noise_kind,
        caption_noise_file=config.caption_noise_file,
        seed=config.seed,
        max_pairs=config.max_pairs,
    )
    return pairs if config.review is None else pairs.reviewed(read_decisions(config.review))


def held_out_pairs(
    config: RunConfig, split: str | None = None, max_images: int | None = None
) -> Pairs:
    """Open clean pairs of another split of the manifest, ``config.test_split`` by default.

    Parameters
    ----------
    max_images : int, optional
        Keep this many, drawn with the seed.

    Raises
    ------
    ValueError, FileNotFoundError
        As :func:`zslkit.open_pairs`.
    """
    return open_pairs(
        config.manifest,
        split or config.test_split,
        **config.source,
        seed=config.seed,
        max_pairs=max_images,
    )


def labelled_images(
    config: RunConfig, max_images: int | None = None, several: bool = False
) -> Pairs:
    """Open the labelled images that a configuration names.

    Parameters
    ----------
    config : RunConfig
        ``zeroshot_manifest``, ``zeroshot_split``, ``data_root``, and ``seed`` for a draw.
    max_images : int, optional
        Keep this many, drawn with the seed.
    several : bool
        Take images with several classes each as well.

    Raises
    ------
    ValueError
        If it names none, their images have no classes, or several where one is needed.
    FileNotFoundError
        If a file that the manifest names is missing.
    """
    name = config.zeroshot_manifest
    if name is None:
        raise ValueError("zeroshot_manifest=None: give labelled images, their classes are needed")
    pairs = open_pairs(
        name,
        config.zeroshot_split,
        **config.zeroshot_source,
        seed=config.seed,
        max_pairs=max_images,
    )
    if pairs.labels is None and pairs.positives is None:
        raise ValueError(
            f"zeroshot_manifest={name!r}: its images have no classes; give a labelled set"
        )
    if pairs.labels is None and not several:
        raise ValueError(
            f"zeroshot_manifest={name!r}: its images have several classes each; evaluate them with "
            "zslkit.evaluation.evaluate_stream, or --label-space own"
        )
    return pairs
