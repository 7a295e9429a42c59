"""The objective in blocks of rows: equal to the written-out one, without its (B, N) matrices.

:mod:`zslkit.objective` says what is computed and is the reference in the tests. Here a first pass
over blocks finds the sums that normalise each row and column, a second one makes each block
again for the gradient, so that memory is O(N D + N block) instead of O(B N). All soft targets of
a teacher have one form: with the fused teacher similarity f they are exp(scale f_ij + a_i + b_j),
and only the vectors a and b are kept (transport: Sinkhorn's; teacher, progressive: a softmax is
Sinkhorn's last half iteration). Vectors and sums over blocks are float64 whatever the matrices are:
they cost nothing, and a rounded logarithm of a row's sum would shift the whole row.

Dimensions: B = queries in this process, N = queries in all processes, D = embedding.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from zslkit.config import RunConfig
from zslkit.objective import Embedded
from zslkit.targets import OWN_PAIR_BELOW, target_agreement
from zslkit.training import dist

_KINDS = {"none", "label_smoothing", "teacher", "progressive", "transport"}
_SMALL = 2048 * 2048  # similarities in a matrix up to which writing it out costs little
_BLOCK = 1 << 21  # similarities in a block: 8 MB, about what a core's share of a cache holds
_AGREEMENT_ROWS = 64  # as in the objective
_REACH, _SINKHORN_REACH = 70, 24  # of |logits|, so that exp of them and of potentials is in range


class _Block:
    """Logits of a block of rows, for sums of exp(logits + row potential + column potential)."""

    def __init__(self, logits: Tensor, small: bool):
        self.logits = logits
        # One exp serves rows and columns, and the potentials become vectors to multiply with,
        # where nothing can leave float32's range.
        self.exp = logits.exp() if small else None

    def row_sums(self, columns: Tensor | None = None) -> Tensor:
        """Give the logarithm of each row's sum."""
        if self.exp is None:
            return _logsumexp(self.logits + (0 if columns is None else self._like(columns)), 1)
        sums = self.exp.sum(1) if columns is None else self.exp @ self._like(columns.exp())
        return sums.double().log_()

    def column_sums(self, rows: Tensor | None = None) -> Tensor:
        """Give the logarithm of each column's sum over the rows of the block."""
        if self.exp is None:
            return _logsumexp(self.logits + (0 if rows is None else self._like(rows)[:, None]), 0)
        sums = self.exp.sum(0) if rows is None else self._like(rows.exp()) @ self.exp
        return sums.double().log_()

    def spread(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """Give exp(logits + rows + columns)."""
        if self.exp is None:
            spread = self.logits + self._like(rows)[:, None]
            return (spread if columns is None else spread.add_(self._like(columns))).exp_()
        spread = self.exp * self._like(rows.exp())[:, None]
        return spread if columns is None else spread.mul_(self._like(columns.exp()))

    def spread_both(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Give exp(logits + rows) + exp(logits + columns), in fewer passes over the block."""
        if self.exp is None:
            one = (self.logits + self._like(rows)[:, None]).exp_()
            return one.add_((self.logits + self._like(columns)).exp_())
        return (self._like(rows.exp())[:, None] + self._like(columns.exp())).mul_(self.exp)

    def _like(self, vector: Tensor) -> Tensor:
        return vector.to(self.logits.dtype)


class _Targets(NamedTuple):
    """Soft targets of both directions without their matrices; see the module's text."""

    left: Tensor | None  # (N, D) teacher embeddings of the rows and of the columns
    right: Tensor | None
    diagonal: Tensor | None  # (N,) own-pair similarity: cross-modal only
    shares: tuple[float, float]  # of intra-modal similarity among the rows, among the columns
    scale: float
    small: bool  # whether exp of |scale f| and of the vectors below is in range
    rows: tuple[Tensor, Tensor]  # a, b of the direction whose queries are the rows, (N,) each
    columns: tuple[Tensor, Tensor]  # the same where they are the columns
    soft: tuple[Tensor, Tensor]  # 1 where a row's, a column's targets are soft, 0 where one-hot
    rest: float = 0.0  # label smoothing: mass on each other candidate

    def turned(self) -> "_Targets":
        """Exchange the two directions."""
        return self._replace(
            left=self.right, right=self.left, shares=self.shares[::-1],
            rows=self.columns[::-1], columns=self.rows[::-1], soft=self.soft[::-1],
        )  # fmt: skip

    def block(self, start: int, stop: int) -> _Block:
        """Make the teacher's logits of some rows, (stop - start, N)."""
        left, (among_rows, among_columns) = self.left[start:stop], self.shares
        # v·t + w_t t·t are one product; nothing as large as the embeddings is kept for w_v v·v
        queries = left + among_columns * self.right[start:stop] if among_columns else left
        logits = queries @ self.right.T
        if among_rows:
            logits.addmm_(left, self.left.T, alpha=among_rows)
        logits.diagonal(start).copy_(self.diagonal[start:stop])
        return _Block(logits.mul_(self.scale), self.small)


def fits(config: RunConfig, n_queries: int) -> bool:
    """Tell whether the objective is worth computing in blocks, and can be."""
    large = n_queries * n_queries * dist.world_size() > _SMALL
    known = config.soft_targets in _KINDS and config.contrastive_loss in ("softmax", "sigmoid")
    return large and known  # kinds of a user's own are computed as they are written


def blockwise_loss(
    student: Embedded,
    teacher: Embedded | None,
    logit_scale: Tensor,
    distillation_scale: Tensor,
    config: RunConfig,
    progress: float = 0.0,
    trust: Tensor | None = None,
    logit_bias: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Give what :func:`zslkit.objective.training_loss` gives, to rounding, in little memory.

    Parameters and returned values are the same. The gradient is ready when the loss is: two
    passes over blocks of the similarities, six with ``sinkhorn_iterations`` = 5 for the targets.

    References
    ----------
    Milakov and Gimelshein (2018), arXiv:1805.02867; Cuturi (2013), arXiv:1306.0895.
    """
    n, image, text = len(student.image), *student
    offset, alone = dist.rank() * n, dist.world_size() == 1
    dtype = torch.promote_types(image.dtype, torch.float32)
    image, text = image.to(dtype), text.to(dtype)
    targets = _make_targets(teacher, config, progress, n * dist.world_size(), image)
    weights = image.new_ones(n)
    if trust is not None:
        weights = (trust / dist.gather(trust).mean().clamp_min(1e-6)).to(dtype)
    scales = logit_scale, distillation_scale
    shared = (scales, logit_bias, weights / (2 * n), config, offset)
    if alone:
        loss, terms = _sweep(image, text, targets, *shared, both=True)
    else:
        loss, terms = _sweep(image, dist.gather(text), targets, *shared, both=False)
        turned = None if targets is None else targets.turned()
        other, more = _sweep(text, dist.gather(image), turned, *shared, both=False, turned=True)
        loss, terms = loss + other, torch.cat([terms[:2] + more[:2], terms[2:]])
    terms[2:] /= n
    names = ["contrastive_loss", "distillation_loss", "self_mass", "target_entropy"]
    values = dict(zip(names, terms.unbind(), strict=True))
    if targets is None:
        return loss, {"contrastive_loss": values["contrastive_loss"]}
    if teacher is not None:
        values["target_agreement"] = _agreement(targets, teacher, n, offset)
    return loss, values


@torch.no_grad()
def _agreement(targets: _Targets, teacher: Embedded, n: int, offset: int) -> Tensor:
    """Correlate the targets of some rows with the teacher's similarities."""
    guide = teacher.image[:_AGREEMENT_ROWS] @ dist.gather(teacher.text).T
    if targets.left is None:
        return guide.new_zeros(())  # the same for all other candidates
    some = slice(offset, offset + len(guide))
    few = targets.block(some.start, some.stop).spread(targets.rows[0][some], targets.rows[1])
    few *= targets.soft[0][some, None]
    few.diagonal(offset).add_(1 - targets.soft[0][some])
    return target_agreement(few, guide, offset)


@torch.no_grad()
def _make_targets(
    teacher: Embedded | None, config: RunConfig, progress: float, n: int, like: Tensor
) -> _Targets | None:
    """Find the vectors that the soft targets consist of; None when there are none."""
    kind, ones = config.soft_targets, like.new_ones(n)
    zeros = like.new_zeros(n, dtype=torch.float64)
    if kind == "label_smoothing":
        rest = config.label_smoothing / (n - 1) if n > 1 else 0.0
        # seen as a one-hot part beside an even one
        none = (0 * ones,) * 2
        return _Targets(None, None, None, (), 0.0, True, (zeros,) * 2, (zeros,) * 2, none, rest)
    if kind == "none" or teacher is None:
        return None
    image, text = (dist.gather(side.to(like.dtype)) for side in teacher)
    shares = config.image_similarity_weight, config.text_similarity_weight
    iterations = config.sinkhorn_iterations if kind == "transport" else 0
    scale = 1 / (config.epsilon if kind == "transport" else config.teacher_temperature)
    own = (image * text).sum(dim=1) - OWN_PAIR_BELOW * config.remove_diagonal
    reach = _SINKHORN_REACH if iterations else _REACH  # its vectors are up to 2 |logits| + log N
    bound = scale * (_bound(image, text) + sum(shares) * max(_bound(image), _bound(text)))
    vectors = (zeros,) * 2, (zeros,) * 2, (ones,) * 2
    targets = _Targets(image, text, own, shares, scale, bound <= reach, *vectors)
    for iteration in range(iterations + 1):
        targets = _sinkhorn_pass(targets, iteration == 0, iteration == iterations)
    if kind != "progressive":
        return targets
    share = config.trusted_start + (config.trusted_end - config.trusted_start) * progress
    soft = []
    for a, b in (targets.rows, targets.columns):
        trust = (scale * own + a + b).exp()
        trusted = trust.argsort(descending=True, stable=True)[: round(share * n)]
        soft.append(ones.index_fill(0, trusted, 0.0))
    return targets._replace(soft=tuple(soft))


def _sinkhorn_pass(targets: _Targets, first: bool, last: bool) -> _Targets:
    """Fit rows, then columns, in both directions; the last pass ends with the queries' own.

    Where the queries are the columns they come first: that direction is half a pass behind.
    """
    (a, b), (a_turned, b_turned) = targets.rows, targets.columns
    a, a_turned = a.clone(), a_turned.clone()
    sums, sums_turned = torch.full_like(b, -torch.inf), torch.full_like(b, -torch.inf)
    for start, stop in _blocks(len(a), len(b)):
        block = targets.block(start, stop)
        a[start:stop] = -block.row_sums(b)
        if not first:
            a_turned[start:stop] = -block.row_sums(b_turned)
        if not last:
            sums = torch.logaddexp(sums, block.column_sums(a[start:stop]))
        sums_turned = torch.logaddexp(sums_turned, block.column_sums(a_turned[start:stop]))
    return targets._replace(rows=(a, b if last else -sums), columns=(a_turned, -sums_turned))


class _Sweep:
    """Scores the rows' queries x against candidates y and, if both, the columns' against x.

    ``terms`` become the contrastive and the distillation term (this side's sums), own-pair mass
    and entropy of the rows' targets (sums); ``gradients`` those of the weighted loss.
    """

    def __init__(self, x, y, targets, scales, bias, weights, config, offset, both, turned=False):
        self.x, self.y, self.targets, self.weights, self.both = x, y, targets, weights, both
        self.scales, self.bias, self.offset = scales, bias, offset
        weight = config.contrastive_weight if targets is not None else 1.0
        self.sigmoid = config.contrastive_loss == "sigmoid" and not turned
        self.shares = {0: weight} if config.contrastive_loss == "softmax" else {}
        self.shares |= {1: 1 - weight} if targets is not None else {}
        self.weight, self.gradients = weight, [torch.zeros_like(x), torch.zeros_like(y)]
        self.slopes = x.new_zeros(3, dtype=torch.float64)  # of both scales and the bias
        self.terms = x.new_zeros(4, dtype=torch.float64)
        self.log_weights, reach = weights.double().log(), _bound(x, y)
        self.small = [math.isfinite(reach) and float(scale) * reach <= _REACH for scale in scales]

    def run(self) -> "_Sweep":
        """Go over the blocks twice."""
        if not self.sigmoid and not self.shares:
            return self  # the sigmoid loss asks one side alone
        potentials = self._potentials() if self.shares else {}
        for start, stop in _blocks(len(self.x), len(self.y)):
            similarity, part = self.x[start:stop] @ self.y.T, self.weights[start:stop]
            own = similarity.diagonal(self.offset + start)
            slope = self._sigmoid(similarity, part, self.offset + start) if self.sigmoid else 0.0
            for k, (rows, columns) in potentials.items():
                block = _Block(similarity * self.scales[k], self.small[k])
                if self.both:
                    error = block.spread_both(rows[start:stop], columns)
                else:
                    error = block.spread(rows[start:stop])
                if k == 0:
                    wanted = part * (1 + self.both)
                    error.diagonal(self.offset + start).sub_(wanted)
                    fit = (wanted * own).sum()
                else:
                    wanted = self._wanted(start, stop, part)
                    error -= wanted
                    fit = _dot(wanted, similarity)
                self.terms[k] -= self.scales[k] * fit
                self.slopes[k] += self.shares[k] * _dot(error, similarity)
                slope = error.mul_(self.shares[k] * self.scales[k]).add_(slope)
            self.gradients[0][start:stop] = slope @ self.y
            self.gradients[1].addmm_(slope.T, self.x[start:stop])
        return self

    def _potentials(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Find the negative logarithm of each row's and column's sum, with the weights."""
        n, m = len(self.x), len(self.y)
        like = self.terms  # float64
        rows = {k: like.new_zeros(n) for k in self.shares}
        columns = {k: like.new_full((m,), -torch.inf) for k in self.shares}
        for start, stop in _blocks(n, m):
            similarity = self.x[start:stop] @ self.y.T
            for k in self.shares:
                block = _Block(similarity * self.scales[k], self.small[k])
                rows[k][start:stop] = block.row_sums()
                if self.both:
                    columns[k] = torch.logaddexp(columns[k], block.column_sums())
        for k in self.shares:
            total = rows[k] + columns[k] if self.both else rows[k]
            self.terms[k] += (self.weights * total).sum()
        logs = self.log_weights
        return {k: (logs - rows[k], logs - columns[k] if self.both else None) for k in self.shares}

    def _sigmoid(self, similarity: Tensor, part: Tensor, own: int) -> Tensor:
        """Add the sigmoid term of a block and give its slope."""
        scale, part = self.scales[0], 2 * part
        logits = similarity * scale + self.bias
        self.terms[0] += (part * (softplus(logits).sum(1) - logits.diagonal(own))).sum()
        error = logits.sigmoid_()
        error.diagonal(own).sub_(1)
        error *= part[:, None]
        self.slopes[0] += self.weight * _dot(error, similarity)
        self.slopes[2] += self.weight * error.sum()
        return error.mul_(self.weight * scale)

    def _wanted(self, start: int, stop: int, part: Tensor) -> Tensor:
        """Make a block of the targets of both directions, weighted; note the rows' statistics."""
        targets, soft = self.targets, self.targets.soft[0][start + self.offset : stop + self.offset]
        n, own = len(self.y), self.offset + start
        hard = 1 - soft
        one = 1 - targets.rest * (n - 1)  # own-pair mass of a row that is not soft
        self.terms[2] += (hard * one).sum()
        entropy = -sum(p * math.log(p) * k for p, k in ((one, 1), (targets.rest, n - 1)) if p > 0)
        self.terms[3] += (hard * entropy).sum()
        mass = targets.rest * hard * part
        wanted = mass[:, None].expand(-1, n).contiguous()
        extra = part * hard * (one - targets.rest)
        if self.both:
            mass = targets.rest * (1 - targets.soft[1]) * self.weights
            wanted += mass
            extra = extra + (self.weights * (1 - targets.soft[1]))[start:stop] * (
                one - targets.rest
            )
        if targets.left is not None:
            a, b = targets.rows[0][own : own + stop - start], targets.rows[1]
            block = targets.block(own, own + stop - start)
            soft_part = block.spread(a, b)
            self.terms[2] += (soft * soft_part.diagonal(own)).sum()
            logs = (soft_part * block.logits).sum(1) + soft_part @ b.to(soft_part.dtype) + a
            self.terms[3] -= (soft * logs).sum()
            wanted += soft_part.mul_((soft * part)[:, None])
            if self.both:
                a, b = targets.columns
                weight = (self.weights * targets.soft[1]).log()
                wanted += block.spread(a[own : own + stop - start], b + weight)
        wanted.diagonal(own).add_(extra)
        return wanted


class _Attach(torch.autograd.Function):
    """A value whose gradients are known."""

    @staticmethod
    def forward(ctx, value: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        return None, None, *(gradient * known for known in ctx.saved_tensors)


def _sweep(x, y, targets, scales, bias, *settings, **more) -> tuple[Tensor, Tensor]:
    """Give the loss of one sweep, with its gradient, and the terms."""
    inputs = x, y, *scales, *([] if bias is None else [bias])
    with torch.no_grad():
        known = [tensor.detach() for tensor in inputs]
        bias = known[4] if bias is not None else 0.0
        sweep = _Sweep(*known[:2], targets, known[2:4], bias, *settings, **more).run()
        share = sweep.weight * sweep.terms[0]
        value = share + (1 - sweep.weight) * sweep.terms[1]
        slopes = [
            slope.to(tensor.dtype) for slope, tensor in zip(sweep.slopes, known[2:], strict=False)
        ]
    value = value.to(x.dtype)
    return _Attach.apply(value, sweep.gradients + slopes, *inputs), sweep.terms


def _blocks(n_rows: int, n_columns: int) -> Iterator[tuple[int, int]]:
    """Yield start and stop of blocks of rows."""
    size = max(64, _BLOCK // n_columns)
    for start in range(0, n_rows, size):
        yield start, min(start + size, n_rows)


def _bound(x: Tensor, y: Tensor | None = None) -> float:
    """Bound the absolute values of x @ y.T; infinite where reading it would wait for a device."""
    if x.device.type != "cpu":
        return math.inf  # a second exp costs an accelerator less than to run dry
    y = x if y is None else y
    return (x.norm(dim=1).max() * y.norm(dim=1).max()).item()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum the products; torch.dot adds millions of them one by one, which loses digits."""
    return (a * b).sum(1).double().sum()


def _logsumexp(values: Tensor, dim: int) -> Tensor:
    """Give torch.logsumexp, several times faster on the CPU; overwrites the values."""
    top = values.amax(dim, keepdim=True)
    return values.sub_(top).exp_().sum(dim).double().log_() + top.squeeze(dim)
