"""The leaky average of v1's keys: in chunks, with its gradient written out, and as one step of torch's compiler."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaic_cli.core import kernels
from mosaic_cli.core.ops import lengths, wide

LEAKY_CHUNK = 64  # tokens averaged by one dense decay matrix: measured fastest of 32, 64 and T on a CPU


def leaky_average(x: Tensor, rate: Tensor, state: Tensor | None = None, reverse: bool = False) -> Tensor:
    """a_T = x_T + exp(-rate_h) a_{T-1}, exactly, in O(T * chunk) and float32 or better (v1, leaky average of the keys).

    Inside a chunk a dense decay matrix is applied; the averages at the chunks' ends are themselves a leaky average, of
    rate chunk * rate, so the function calls itself for the carry between chunks.

    Args:
        x: (B, T, H, D).
        rate: (H,), not negative.
        state: (B, H, D), a_{-1}; None means zero.
        reverse: run from the last token to the first: a_T = x_T + exp(-rate_h) a_{T+1}.

    Returns:
        (B, H, T, D), a view of memory in the order of x; the last one is the state to go on with.
    """
    if kernels.serves(x) and not reverse:
        from mosaic_cli.core.kernels import leaky

        return leaky.leaky_average(x, rate, state)
    B, T, H, D = x.shape
    chunk = min(T, LEAKY_CHUNK)
    n = -(-T // chunk)  # chunks
    with torch.autocast(x.device.type, enabled=False):
        x = wide(x)
        rate = rate.to(x.dtype)
        if n * chunk > T:
            x = F.pad(x, (0, 0, 0, 0, 0, n * chunk - T))
        x = x.reshape(B, n, chunk, H, D)
        steps = torch.arange(chunk, device=x.device, dtype=x.dtype)
        decay = torch.exp(-rate.view(-1, 1, 1) * (steps[:, None] - steps).clamp_(min=0)).tril()  # (H, chunk, chunk)
        average = _from_columns(torch.bmm(decay.mT if reverse else decay, _to_columns(x)), x.shape)
        if n > 1 or state is not None:
            carry = _carry_into_chunks(average[:, :, 0 if reverse else -1], rate * chunk, state, reverse)
            fade = torch.exp(-rate * ((chunk - steps) if reverse else (steps + 1))[:, None])  # (chunk, H)
            average = torch.addcmul(average, fade[..., None], carry[:, :, None])
        return average.view(B, n * chunk, H, D)[:, :T].transpose(1, 2)


def _to_columns(x: Tensor) -> Tensor:
    """(B, n, chunk, H, D) -> (H, chunk, B * n * D)."""
    B, n, chunk, H, D = x.shape
    return x.permute(3, 2, 0, 1, 4).reshape(H, chunk, B * n * D)


def _from_columns(columns: Tensor, shape: torch.Size) -> Tensor:
    B, n, chunk, H, D = shape
    return columns.view(H, chunk, B, n, D).permute(2, 3, 1, 0, 4).contiguous()


def _carry_into_chunks(ends: Tensor, rate: Tensor, state: Tensor | None, reverse: bool) -> Tensor:
    """The average just outside of each chunk (B, n, H, D), from the averages at the chunks' ends (B, n, H, D)."""
    first = torch.zeros_like(ends[:, :1]) if state is None else state[:, None].to(ends.dtype)
    if ends.shape[1] == 1:
        return first
    others = ends[:, 1:] if reverse else ends[:, :-1]
    carry = leaky_average(others, rate, state, reverse).transpose(1, 2)
    return torch.cat([carry, first] if reverse else [first, carry], dim=1)


def leaky_keys(x: Tensor, rate: Tensor) -> Tensor:
    """The normalised leaky average of x (B, T, H, D): keys (B, H, T, D) (v1).

    The average is float32 or better, and so are the keys, unless a GPU computes them or a CPU trains: there the kernels
    write what the next product would round them to.
    """
    if kernels.serves(x):
        from mosaic_cli.core.kernels import leaky

        return leaky.leaky_keys(x, rate)
    if torch.compiler.is_compiling():
        return _compiled_leaky_keys(x, rate)[0].transpose(1, 2)
    if kernels.loops_serve(x):
        from mosaic_cli.core.kernels import cpu

        return cpu.keys(x, None, rate.to(torch.promote_types(x.dtype, torch.float32)))
    return _LeakyKeys.apply(x, rate) if torch.is_grad_enabled() else _keys_forward(x, rate)[0]


def _keys_forward(x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (B, H, T, D) and the averages' lengths (B, H, T, 1)."""
    average = leaky_average(x, rate)
    norm = lengths(average)
    return average / norm, norm


def _keys_backward(
    gradient: Tensor, keys: Tensor, norm: Tensor, rate: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gradients by x (B, T, H, D), which is of this dtype, and by rate (H,).

    The gradient of a recurrence is the recurrence run backwards: with g the gradient by the averages a,
    G_t = g_t + lambda G_{t+1} is the gradient by x_t, and the sum of G_t . a_{t-1} that by lambda.
    """
    along = (gradient * keys).sum(dim=-1, keepdim=True)
    by_average = torch.addcmul(gradient, keys, along, value=-1).div_(norm)  # (B, H, T, D)
    by_x = leaky_average(by_average.transpose(1, 2), rate, reverse=True)  # (B, H, T, D)
    dots = (by_x[:, :, 1:] * keys[:, :, :-1]).sum(dim=-1, keepdim=True).mul_(norm[:, :, :-1])
    return by_x.transpose(1, 2).to(dtype), -torch.exp(-rate) * dots.sum(dim=(0, 2, 3))


class _LeakyKeys(torch.autograd.Function):
    """Averaging and normalising with the gradient written out: autograd would record a dozen small steps."""

    @staticmethod
    def forward(ctx, x: Tensor, rate: Tensor) -> Tensor:
        keys, norm = _keys_forward(x, rate)
        ctx.save_for_backward(keys, norm, rate)
        ctx.dtype = x.dtype
        return keys

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return _keys_backward(gradient, *ctx.saved_tensors, ctx.dtype)


# The compiler sees the keys as one step that it cannot look into: the recursion over chunks would be compiled anew for
# every number of its levels, and there is little in it to fuse. Memory is laid out (B, T, H, D), whatever T is.
@torch.library.custom_op("mosaic::leaky_keys", mutates_args=())
def _compiled_leaky_keys(x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    keys, norm = _keys_forward(x, rate)
    return keys.transpose(1, 2).contiguous(), norm.transpose(1, 2).contiguous()


@torch.library.custom_op("mosaic::leaky_keys_backward", mutates_args=())
def _compiled_leaky_keys_backward(
    gradient: Tensor, keys: Tensor, norm: Tensor, rate: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    by_x, by_rate = _keys_backward(*(tensor.transpose(1, 2) for tensor in (gradient, keys, norm)), rate, dtype)
    return by_x.contiguous(), by_rate


@_compiled_leaky_keys.register_fake
def _(x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    keys = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    return keys, keys.new_empty(*x.shape[:-1], 1)


@_compiled_leaky_keys_backward.register_fake
def _(gradient: Tensor, keys: Tensor, norm: Tensor, rate: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty(keys.shape, dtype=dtype, device=keys.device), torch.empty_like(rate)


def _save_keys(ctx, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, inputs[1])
    ctx.dtype = inputs[0].dtype


def _differentiate_keys(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    return _compiled_leaky_keys_backward(gradient, *ctx.saved_tensors, ctx.dtype)


_compiled_leaky_keys.register_autograd(_differentiate_keys, setup_context=_save_keys)
