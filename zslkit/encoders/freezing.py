"""Which blocks of a tower train."""

from collections.abc import Iterator

from torch import nn


def freeze(tower: nn.Module, trainable_blocks: int | None) -> list[nn.Module]:
    """Stop gradients in all but the last blocks; return what must stay in eval mode."""
    if trainable_blocks is None:
        return []
    tower.requires_grad_(False)
    if trainable_blocks == 0:
        return [tower]
    found = list(blocks(getattr(tower.net, "body", tower.net)))  # body: without its projection
    # norms, pooling and activations go with the block before them; they are none themselves
    starts = [i for i, block in enumerate(found) if any(p.dim() > 1 for p in block.parameters())]
    if trainable_blocks > len(starts):
        raise ValueError(
            f"last_blocks={trainable_blocks}: {tower.name} has {len(starts)} blocks with weights"
        )
    cut = starts[-trainable_blocks]
    for block in found[cut:]:
        block.requires_grad_(True)
    return found[:cut]


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """Walk the parts of a network in order, opening stacks of blocks but not the blocks."""
    for child in net.children():
        if _is_stack(child) or any(_is_stack(part, alike=True) for part in child.children()):
            yield from blocks(child)
        else:
            yield child


def _is_stack(module: nn.Module, alike: bool = False) -> bool:
    # exact types: torchvision's convolution + norm + activation is a subclass of Sequential
    kinds = {type(child) for child in module.children()}
    return type(module) in (nn.Sequential, nn.ModuleList) and (not alike or len(kinds) == 1)
