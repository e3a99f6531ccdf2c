"""What a model did while it read one text: taken from its named inner points by hooks, and recomputed in float64.

The model itself runs as it always does. Fused kernels hide the retrieval weights, so these are computed again from the
queries and keys that went into the kernel.

Shapes: T tokens, S stored pairs, C model width, H heads, D head width, M slots, N layers. No batch: one text.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from mosaic_cli.core import ops
from mosaic_cli.core.features import GatedKeyExtractor, KeyExtractor
from mosaic_cli.core.gated import gated_average
from mosaic_cli.core.memory import ADAPTIVE, PairMemory, PersistentMemory, WindowedMemory
from mosaic_cli.core.model import LanguageModel
from mosaic_cli.core.mosaic import Block, Mosaic
from mosaic_cli.core.transformer import TransformerBlock
from mosaic_cli.data.batches import Tokens, check_length
from mosaic_cli.errors import NonFiniteError, UsageError

PAIR_KINDS = ("ctx", "short", "long")
"""What names call pairs of the text: of a memory of all earlier ones (or attention), a short- and a long-term one."""

FORGOTTEN = 1e4  # a rate of decay that leaves nothing: keys without an average


@dataclass(frozen=True)
class Retrieval:
    """How the heads of one layer retrieved: softmax of queries times keys, over the pairs each position may see.

    Contextual memories with windows stand side by side as more heads: H counts the heads of all `kinds`, in order.

    queries: (H, T, D), times the inverse bandwidth.
    keys, values: (H, S, D), or (H, M, D) for slots.
    output: (H, D, C), what each head's read becomes in the residual stream (W_o).
    reach: position t sees the pairs j < t + reach: 0 for a mosaic's strict past, 1 for attention; None sees them all.
    kinds: of memory, as names have them.
    ages: (H, 2), of those pairs a head sees the ones with first <= t - j <= last; None: all.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    output: Tensor
    reach: int | None
    kinds: tuple[str, ...]
    ages: Tensor | None = None

    def visible(self, position: int) -> int:
        """Number of pairs that a position may see."""
        return self.keys.shape[1] if self.reach is None else position + self.reach

    def scores(self, position: int) -> Tensor:
        """Exponents of the kernel (H, visible): log of the weights, up to a constant per head."""
        keys = self.keys[:, : self.visible(position)]  # (H, visible, D)
        scores = (keys @ self.queries[:, position, :, None])[..., 0]
        if self.ages is None:
            return scores
        positions = torch.tensor([position], device=scores.device)
        return scores.masked_fill(self._outside(positions, keys.shape[1])[:, 0], -torch.inf)

    def _outside(self, positions: Tensor, count: int) -> Tensor:
        """Which of the first pairs are too new or too old for a head at each position (H, positions, count)."""
        ages = positions[:, None] - torch.arange(count, device=positions.device)
        first, last = self.ages[:, :, None, None].unbind(1)
        return (ages < first) | (ages > last)

    def weights(self, position: int) -> Tensor:
        """Retrieval weights (H, visible) of a position; they sum to one over the pairs, where there is one."""
        return self.scores(position).softmax(-1).nan_to_num(0.0)

    def all_weights(self) -> Tensor:
        """Retrieval weights (H, T, S) of every position, zero where a pair is not seen (v1: position 0 sees none)."""
        scores = self.queries @ self.keys.mT
        if self.reach is not None:
            T, S = scores.shape[1:]
            hidden = torch.ones(T, S, dtype=torch.bool, device=scores.device).triu(self.reach)
            scores = scores.masked_fill(hidden, -torch.inf)
        if self.ages is not None:
            positions = torch.arange(scores.shape[1], device=scores.device)
            scores = scores.masked_fill(self._outside(positions, scores.shape[2]), -torch.inf)
        return scores.softmax(-1).nan_to_num(0.0)  # a row without any pair


@dataclass(frozen=True)
class Values:
    """Where stored values came from. With norms held, value j of head h is linear in the tokens it was made of:

    value = factor[h, j] * (own[h] * content_j + (1 - own[h]) * content_{j + 1}),  content = project (LN x)

    project: (H, D, C). factor: (H, S), alpha / |v_bar| in a mosaic. own: (H,), gamma; 1 where values do not peek.
    """

    project: Tensor
    factor: Tensor
    own: Tensor

    def sources(self, head: int, pair: int, functional: Tensor) -> list[tuple[int, Tensor]]:
        """Positions that a value was made of, each with the functional (C,) on LN x there that equals `functional`
        (D,) on the value: the sum over positions is the same number."""
        through = self.project[head].mT @ functional * self.factor[head, pair]  # (C,)
        shares = [(pair, self.own[head]), (pair + 1, 1 - self.own[head])]
        return [(position, share * through) for position, share in shares if share != 0]


@dataclass(frozen=True)
class Norm:
    """A LayerNorm and the residual stream (T, C) that went into it."""

    stream: Tensor
    weight: Tensor
    eps: float

    def outputs(self) -> Tensor:
        """LN x (T, C)."""
        x = self.stream - self.stream.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight

    def back(self, position: int, functional: Tensor) -> Tensor:
        """The functional (C,) on x that equals `functional` (C,) on LN x, the standard deviation held as it was."""
        x = self.stream[position]
        weighted = self.weight * functional
        return (weighted - weighted.mean()) / (x.var(correction=0) + self.eps).sqrt()


@dataclass(frozen=True)
class KeyPaths:
    """How a mosaic's contextual keys came about: each token put in gate times W_phi LN x, which faded since.

    projected: W_phi LN x (H, T, D). log_gates: (H, T), 0 where there are no gates. rates: (H, T), token t fades all
    before it by exp(-rate). log_lengths: (H, T), logarithm of what the sum was divided by.
    """

    projected: Tensor
    log_gates: Tensor
    rates: Tensor
    log_lengths: Tensor

    def share(self, head: int, position: int) -> Tensor:
        """What each token up to `position` put into the key there (position + 1, D); the sum is the key."""
        rates = self.rates[head, : position + 1]
        since = rates.flip(0).cumsum(0).flip(0) - rates  # of the tokens after each
        logs = self.log_gates[head, : position + 1] - since - self.log_lengths[head, position]
        return logs.exp()[:, None] * self.projected[head, : position + 1]


@dataclass(frozen=True)
class LayerReading:
    """One block. `slots` is a mosaic's persistent memory where it has slots; `mlp` (T, C) what a feed-forward layer
    added, as one piece."""

    norm: Norm
    pairs: Retrieval
    values: Values
    slots: Retrieval | None
    mlp: Tensor | None
    keys: KeyPaths | None


@dataclass(frozen=True)
class Reading:
    """One text as a model read it. All tensors but `head` and `logits` are float64.

    tokens: T ids. embedded: (T, C), the residual stream before the first block. final: the last norm.
    logit_scale: factor of the hidden state before the head. logits: (T, V), as the model gave them, hooks in place.
    peek: see `peek`.
    """

    tokens: list[int]
    embedded: Tensor
    layers: list[LayerReading]
    final: Norm
    logit_scale: float
    head: Tensor
    logits: Tensor
    peek: int

    def check_finite(self, where: object = None) -> None:
        """Raises: NonFiniteError: the logits are not numbers, so the weights mean nothing; `where` is the model's."""
        if not self.logits.isfinite().all():
            raise NonFiniteError(
                "the model's logits are not finite, so its retrieval weights mean nothing",
                where=where,
                hint="Use an earlier checkpoint: --ckpt RUN@STEP.",
            )

    def direction(self, target: int, versus: int | None = None) -> Tensor:
        """The functional (C,) on the normed final stream that gives a token's logit, or its lead over `versus`."""
        rows = self.head[target] if versus is None else self.head[target] - self.head[versus]
        return _exact(rows) * self.logit_scale


def peek(model: LanguageModel) -> int:
    """How many tokens behind its key the token stands that a pair stores: 1 where a mosaic's values peek; else 0."""
    return int(isinstance(model, Mosaic) and model.config.peek)


def nearest(model: LanguageModel) -> int:
    """How many tokens before its reader the newest pair stands that can be read: 1 in a mosaic; 0 in attention."""
    return int(isinstance(model, Mosaic))


def pair_kinds(model: LanguageModel) -> tuple[str, ...]:
    """What the pairs of a layer are called, one kind for each of its contextual memories."""
    windows = model.config.memories if isinstance(model, Mosaic) else ("full",)
    return tuple("ctx" if window == "full" else window for window in windows)


def has_slots(model: LanguageModel) -> bool:
    """Whether a model's persistent memories hold slots."""
    return isinstance(model, Mosaic) and model.config.persistent == "slots"


@torch.no_grad()
def read_text(model: LanguageModel, tokens: list[int]) -> Reading:
    """Run the model over a text, in its own arithmetic, and keep what passed through its inner points.

    Args:
        model: either kind; read in evaluation mode and left in the mode it was in.
        tokens: at least one; no more than the context length for the baseline.

    Raises:
        UsageError: an empty text, or one longer than the baseline's context.
    """
    if not tokens:
        raise UsageError("the prompt holds no token", hint="Give some text to look at.")
    device = next(model.parameters()).device
    was_training = model.training
    try:
        with _Watch(model.eval()) as seen:
            logits = model(torch.tensor([tokens], device=device))[0]
    finally:
        model.train(was_training)
    make = _mosaic_layer if isinstance(model, Mosaic) else _baseline_layer
    layers = [make(block, seen) for block in model.blocks]
    return Reading(
        tokens=tokens,
        embedded=layers[0].norm.stream,
        layers=layers,
        final=_norm(model.norm, seen),
        logit_scale=model.logit_scale if isinstance(model, Mosaic) else 1.0,
        head=_reachable(model.embedding.weight),
        logits=_reachable(logits),
        peek=peek(model),
    )


def count_windows(tokens: Tokens, context: int, most: int) -> int:
    """How many windows `read_windows` reads."""
    return min(most, max(1, len(tokens) // context))


def read_windows(model: LanguageModel, tokens: Tokens, context: int, most: int) -> Iterator[tuple[int, Reading]]:
    """Read a corpus in windows side by side from its start; yields where each begins, and its reading.

    Args:
        context: tokens in a window. A corpus that does not fill one is read as one shorter window; behind full
            windows a rest is left out.
        most: read no more windows than this.

    Raises:
        DataError: fewer than two tokens.
        NonFiniteError: the model's logits are not numbers.
    """
    check_length(tokens, 1, "val")
    for start in range(0, count_windows(tokens, context, most) * context, context):
        reading = read_text(model, tokens.read(start, min(start + context, len(tokens))).tolist())
        reading.check_finite()
        yield start, reading


class _Watch:
    """Keeps what goes into and comes out of every module of a model while it is open."""

    def __init__(self, model: nn.Module):
        self._model = model
        self.inputs: dict[nn.Module, tuple] = {}
        self.outputs: dict[nn.Module, object] = {}

    def __enter__(self) -> "_Watch":
        self._hooks = [module.register_forward_hook(self._keep) for module in self._model.modules()]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple, output: object) -> None:
        self.inputs[module], self.outputs[module] = inputs, output


def _reachable(tensor: Tensor) -> Tensor:
    """The tensor where float64 exists: Apple's GPUs have none, so theirs come to the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).detach()


def _exact(tensor: Tensor) -> Tensor:
    """The tensor in float64."""
    return _reachable(tensor).double()


def _one(batch: Tensor) -> Tensor:
    """The only text of a batch, in float64."""
    return _exact(batch[0])


def _norm(module: nn.LayerNorm, seen: _Watch) -> Norm:
    return Norm(_one(seen.inputs[module][0]), _exact(module.weight), module.eps)


def _heads_out(output: nn.Linear, num_heads: int) -> Tensor:
    """W_o as (H, D, C)."""
    return _exact(output.weight).mT.unflatten(0, (num_heads, -1))


def _heads_in(weight: Tensor, num_heads: int) -> Tensor:
    """A projection (C, C) as (H, D, C)."""
    return _exact(weight).unflatten(0, (num_heads, -1))


def _mosaic_layer(block: Block, seen: _Watch) -> LayerReading:
    contextual, norm = block.contextual, _norm(block.contextual_norm, seen)
    inputs = norm.outputs()
    windowed = isinstance(contextual, WindowedMemory)
    memories = contextual.memories() if windowed else [contextual]
    queries = torch.cat([_one(seen.outputs[memory.keys]) for memory in memories])  # (H, T, D), H of all memories
    betas = torch.cat([_betas(memory, queries.shape[1]) for memory in memories])
    pairs = Retrieval(
        queries=queries * betas,
        keys=queries[:, :-1],
        values=torch.cat([_one(seen.outputs[memory.values]) for memory in memories]),
        output=_heads_out(contextual.output, len(queries)),
        reach=0,
        kinds=contextual.names if windowed else ("ctx",),
        ages=torch.cat([_ages(memory, queries) for memory in memories]) if windowed else None,
    )
    values, keys = (_joined([part(memory, inputs) for memory in memories]) for part in (_peeked, _keys))
    persistent = block.persistent
    if isinstance(persistent, PersistentMemory):
        return LayerReading(norm, pairs, values, _slots(persistent, seen), None, keys)
    return LayerReading(norm, pairs, values, None, _one(seen.outputs[persistent]), keys)


def _slots(persistent: PersistentMemory, seen: _Watch) -> Retrieval:
    queries, keys, values = seen.inputs[persistent.read][:3]
    beta, *growth = _scalars(persistent.read)
    if growth:
        beta = ops.adaptive_bandwidth(beta, *growth, torch.tensor([keys.shape[1]], device=beta.device))[:, 0]
    return Retrieval(
        queries=_one(queries) * beta[:, None, None],
        keys=_exact(keys),
        values=_exact(values) * ops.value_scale(_exact(persistent.read.scale))[:, None, None],
        output=_heads_out(persistent.output, len(keys)),
        reach=None,
        kinds=("slot",),
    )


def _joined(parts: list):
    """One `Values` or `KeyPaths` of several memories, their heads behind one another."""
    kind = type(parts[0])
    return kind(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(kind)))


def _betas(memory: PairMemory, num_tokens: int) -> Tensor:
    """Inverse bandwidths (H, T or 1, 1) of a memory's heads; where they grow, by the pairs that each position reads."""
    read = memory.read
    scalars = _scalars(read)
    if not read.adaptive:
        return scalars[0][:, None, None]
    seen = torch.arange(num_tokens, device=scalars[0].device) - memory.delay + 1
    return ops.adaptive_bandwidth(*scalars, seen.clamp(1, read.window))[..., None]


def _scalars(read: nn.Module) -> tuple[Tensor, ...]:
    """What a read's inverse bandwidths are made of (H,), in float64."""
    if read.adaptive:
        return ops.bandwidth_growth(*(_exact(getattr(read, name)) for name in ADAPTIVE))
    return (ops.inverse_bandwidth(_exact(read.bandwidth)),)


def _ages(memory: PairMemory, like: Tensor) -> Tensor:
    """The first and last age (H, 2) of the pairs that a memory's heads see."""
    last = memory.read.window or like.shape[1]
    return torch.tensor([[memory.delay, last]], device=like.device).expand(len(memory.values.peek), 2)


def _peeked(memory: PairMemory, inputs: Tensor) -> Values:
    extractor = memory.values
    gamma = _exact(extractor.peek)
    project = _heads_in(extractor.project.weight, len(gamma))
    content = torch.einsum("tc,hdc->htd", inputs, project)  # (H, T, D)
    mixed = torch.lerp(content[:, 1:], content[:, :-1], gamma[:, None, None])
    alpha = extractor.form(_exact(extractor.scale))
    return Values(project, alpha[:, None] / mixed.norm(dim=-1).clamp(min=1e-12), gamma)


def _keys(memory: PairMemory, inputs: Tensor) -> KeyPaths:
    extractor, H = memory.keys, len(memory.values.peek)
    projected = torch.einsum("tc,hdc->htd", inputs, _heads_in(extractor.project.weight, H))
    gates = torch.zeros_like(projected[..., 0])
    if isinstance(extractor, GatedKeyExtractor):
        gates, decays = (inputs @ _exact(linear.weight).mT for linear in (extractor.gate, extractor.decay))
        gates, rates = gates.mT, decays.abs().mT
    elif isinstance(extractor, KeyExtractor):
        rates = ops.leak_rate(_exact(extractor.leak))[:, None].expand_as(gates)
    else:
        rates = torch.full_like(gates, FORGOTTEN)
    terms = (tensor.transpose(0, 1)[None] for tensor in (projected, gates, rates))
    average, scale = gated_average(*terms)  # a leaky average is one whose gates and decays do not change
    log_lengths = average[0].norm(dim=-1).clamp(min=1e-12).log() + scale[0, ..., 0]
    return KeyPaths(projected, gates, rates, log_lengths if extractor.normalised else torch.zeros_like(gates))


def _baseline_layer(block: TransformerBlock, seen: _Watch) -> LayerReading:
    attention, norm = block.attention, _norm(block.attention_norm, seen)
    H = attention.num_heads
    queries, keys, values = map(_one, seen.inputs[attention.read])
    pairs = Retrieval(queries / queries.shape[-1] ** 0.5, keys, values, _heads_out(attention.output, H), 1, ("ctx",))
    project = _heads_in(attention.project.weight.chunk(3)[2], H)
    ones = torch.ones(values.shape[:2], dtype=torch.float64, device=values.device)
    return LayerReading(norm, pairs, Values(project, ones, ones[:, 0]), None, _one(seen.outputs[block.mlp]), None)
