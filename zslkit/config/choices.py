"""Settings whose choices are open: kinds of loss and targets, parts of a tower that train."""

from zslkit.data.kinds import KINDS, Kind


def kind_of(setting: str, name: str) -> Kind:
    """Give the row of a kind of contrastive loss or soft targets.

    Raises
    ------
    ValueError
        If there is none of this name, with the nearest ones.
    """
    import zslkit.targets  # late, as torch takes seconds; it defines the library's own  # noqa: F401

    return KINDS[setting][name]


def parse_tower_mode(mode: str, field: str = "tower") -> int | None:
    """Read ``train`` as None, ``frozen`` as 0 and ``last_blocks=N`` as N trainable blocks.

    Raises
    ------
    ValueError
        For any other text.
    """
    if mode in ("train", "frozen"):
        return None if mode == "train" else 0
    head, _, count = mode.partition("=")
    if head == "last_blocks" and count.isdecimal() and int(count) > 0:
        return int(count)
    raise ValueError(f"{field}={mode!r} must be train, frozen or last_blocks=N with N > 0")
