"""The compiled loops against the slow ones: values and every gradient, odd lengths, any gates."""

import pytest
import torch
from gradients import assert_same, leaf
from tiny_models import tiny_model, tiny_tokens

from mosaic_cli.core import kernels, leaky, reference
from mosaic_cli.core.kernels import compiled, cpu

H, D = 3, 5
LENGTHS = [1, 2, 7, 64, 65, 130]


def _gated_keys(x, log_gate, rate):
    averages = torch.stack([reference.gated_average(*sequence) for sequence in zip(x, log_gate, rate, strict=True)])
    averages = averages.transpose(1, 2)
    return averages / averages.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("scale", [1.0, 20.0], ids=["moderate", "wide"])
def test_gated_keys_are_the_loop_normalised(T, scale):
    inputs = [leaf(2, T, H, D), leaf(2, T, H, scale=scale), (scale * torch.rand(2, T, H).double()).requires_grad_()]
    assert_same(cpu.keys(*inputs), _gated_keys(*inputs), inputs)


def test_gates_beyond_what_a_float_holds_do_not_overflow():
    x, log_gate, rate = torch.randn(1, 40, H, D), 300 * torch.randn(1, 40, H), 300 * torch.rand(1, 40, H)
    inputs = [tensor.requires_grad_() for tensor in (x, log_gate, rate)]
    keys = cpu.keys(*inputs)
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(1, H, 40))
    for gradient in torch.autograd.grad(keys.square().sum() + keys.sum(), inputs):
        assert gradient.isfinite().all()


def test_the_number_of_threads_changes_nothing_and_stays():
    x, rate = torch.randn(3, 50, H, D, requires_grad=True), torch.rand(H, requires_grad=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            keys = leaky.leaky_keys(x, rate)
            results.append([keys, *torch.autograd.grad(keys.cos().sum(), [x, rate])])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_where_nothing_can_be_kept_they_are_compiled_anew(monkeypatch):
    njit = compiled.numba.njit

    def read_only(cache=False, **options):
        def decorate(function):
            if cache:
                raise RuntimeError("cannot cache function: no locator available")
            return njit(**options)(function)

        return decorate

    monkeypatch.setattr(compiled.numba, "njit", read_only)
    assert compiled.inner(lambda x: x + 1)(2) == 3


@pytest.mark.parametrize("function", ["keys", "values"])
def test_in_bfloat16_they_round_what_float32_gives(function):
    x, scalars = torch.randn(2, 65, H, D).bfloat16().requires_grad_(), (torch.rand(H), 1 + torch.rand(H))
    if function == "keys":
        scalars = [scalar.expand(2, 65, H) for scalar in scalars]
    ours, wide = (getattr(cpu, function)(content, *scalars) for content in (x, x.float()))
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, wide.bfloat16())
    direction = torch.linspace(-1, 2, ours.numel()).view_as(ours).bfloat16()
    by_ours, by_wide = (torch.autograd.grad((y * direction).sum(), x)[0].float() for y in (ours, wide))
    assert (by_ours - by_wide).norm() <= 0.01 * by_wide.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("changes", [{}, {"preset": "v2", "short_window": 16, "long_delay": 4, "max_long_delay": 8}])
def test_validation_of_much_text_computes_what_training_does(changes, dtype, monkeypatch):
    monkeypatch.setitem(kernels.MANY, dtype, 1)
    model, tokens = tiny_model(context_length=48, **changes).eval(), torch.tensor([tiny_tokens(48), tiny_tokens(48, 1)])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        recorded = model(tokens)
        with torch.no_grad():
            assert torch.equal(model(tokens), recorded)
            monkeypatch.setattr(cpu, "_Keys", None)  # to see that it is asked for
            with pytest.raises(AttributeError):
                model(tokens)


def test_they_serve_training_on_a_cpu_only():
    x = torch.zeros(1)
    assert kernels.loops_serve(x) and not kernels.loops_serve(x.to("meta"))
    with torch.no_grad():
        assert not kernels.loops_serve(x)
