"""The cross-entropy of hidden states and a head, without ever holding all logits.

Shapes: N tokens    C model width    V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mosaic_cli.core import ops
from mosaic_cli.core.kernels import onednn_serves, product_dtype

CHUNKED_FROM = 1024  # vocabulary from which chunks are faster on a CPU: docs/performance.md
CHUNK_TOKENS = {torch.float32: 256, torch.bfloat16: 1024}  # on a CPU; the rest is slower: docs/performance.md
CHUNK_TOKENS_ELSEWHERE = 4096  # enough work at once for a GPU; not measured


def chunk_tokens(device: torch.device, dtype: torch.dtype = torch.float32) -> int:
    """Tokens whose logits, of this dtype, are made at once."""
    if device.type != "cpu":
        return CHUNK_TOKENS_ELSEWHERE
    return CHUNK_TOKENS.get(dtype, CHUNK_TOKENS[torch.float32])


def chunks_pay(num_tokens: int, vocab_size: int, device: torch.device) -> bool:
    """Whether the logits are worth cutting up: not with a small vocabulary, nor with a single chunk's tokens."""
    return vocab_size >= CHUNKED_FROM and num_tokens > chunk_tokens(device)


class ChunkedLoss(torch.autograd.Function):
    """Summed cross-entropy in nats of logits `hidden @ head.T`, in float32 or wider, from a chunk's logits at a time.

    A chunk's logits become their own gradient in place, and that the gradient of hidden states and head at once. So the
    backward pass computes no logits again, and the products are as many as without chunks. While torch's compiler looks
    on, which reuses memory by itself, nothing is written in place: PyTorch 2.11.0 would make all gradients zero.

    `apply(hidden (N, C), head (V, C), targets (N,)) -> ()`. A target of -100 does not count and costs 0. Products are
    made in autocast's dtype, where it is on; the head's gradient is added up in the head's own.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        dtype = product_dtype(hidden)
        weight, N, chunk = head.to(dtype), len(targets), chunk_tokens(hidden.device, dtype)
        losses, by_hidden, by_head = [], [], torch.zeros_like(head)
        compiling = torch.compiler.is_compiling()
        by_onednn = not compiling and onednn_serves(min(N, chunk), dtype, weight)
        product = F.linear
        if by_onednn:
            from mosaic_cli.core.kernels.onednn import outer_products, product

            by_head = head.new_zeros(head.shape[::-1]).t()  # lies in memory as its parts are made
        for start in range(0, N, chunk):
            rows = slice(start, start + chunk)
            h = hidden[rows].to(dtype)
            loss, p = _loss_and_gradient(product(h, weight), targets[rows])
            losses.append(loss)
            by_hidden.append(product(p, weight.T).to(hidden.dtype))
            if compiling:
                by_head = by_head + p.T @ h
            elif by_onednn:
                by_head += outer_products(p, h)
            elif dtype == by_head.dtype:
                by_head.addmm_(p.T, h)
            else:  # addmm takes one dtype only
                by_head += p.T @ h
        ctx.save_for_backward(torch.cat(by_hidden), by_head)
        return sum(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        by_hidden, by_head = ctx.saved_tensors
        return by_hidden * gradient, by_head * gradient, None


def _loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy () of a chunk's logits (N, V), and its gradient by them in their dtype and maybe place."""
    compiling = torch.compiler.is_compiling()
    if logits.dtype in (torch.float32, torch.bfloat16) and logits.device.type == "cpu" and not compiling:
        from mosaic_cli.core.kernels import cross_entropy

        return cross_entropy.cross_entropy_(logits, targets), logits
    targets, counts = targets[:, None].clamp(min=0), targets[:, None] >= 0
    wide = ops.wide(logits)
    own, highest = wide.gather(1, targets), wide.amax(1, keepdim=True)
    p = (wide - highest).exp() if compiling else wide.sub_(highest).exp_()
    z = p.sum(1, keepdim=True)
    loss = ((z.log() + highest - own) * counts).sum()
    if compiling:  # a comparison is fused, but for a scatter all of p would be kept
        places = torch.arange(p.shape[1], device=p.device)
        p = (p / z - (places == targets).to(p.dtype)) * counts  # softmax - one hot
    else:
        p.mul_(counts / z).scatter_add_(1, targets, -counts.to(p.dtype))
    return loss, p.to(logits.dtype)
