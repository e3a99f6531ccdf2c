"""What slots hold and who calls them, judged by brute force; `mosaic probe memories`."""

import json

import pytest
import torch

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model
from mosaic_cli.core.ops import inverse_bandwidth
from mosaic_cli.probes.memories import CALLED, Slot, pushes, slot_use
from mosaic_cli.probes.reading import read_text
from mosaic_cli.probes.trace import said

T, N, H, M, V = 7, 2, 3, 6, 11
WINDOWS = 4
CALLS = 5


@pytest.fixture
def model():
    model = build_model(ModelConfig(num_layers=N, num_heads=H, d_model=12, num_slots=M, context_length=T, vocab_size=V))
    with torch.no_grad():
        for block in model.blocks:
            block.persistent.slot_keys[:, 0] *= -3  # so that some slots are hardly called
            block.persistent.read.scale.uniform_(-0.1, 0.1)
        model.norm.weight.uniform_(0.5, 2)
    return model


@pytest.fixture
def ids():
    return torch.randint(V, (WINDOWS * T + 3,)).tolist()


@pytest.fixture
def use(model, ids, array_tokens):
    return [*slot_use(model, array_tokens(ids), windows=99, calls=CALLS)][-1]


@pytest.fixture
def weights(model, ids):
    """Every retrieval weight (N, H, WINDOWS * T, M), all held at once."""
    seen = [[] for _ in range(N)]
    for block, kept in zip(model.blocks, seen, strict=True):
        block.persistent.read.register_forward_hook(lambda _, inputs, __, kept=kept: kept.append(inputs))
    with torch.no_grad():
        for start in range(0, WINDOWS * T, T):
            model(torch.tensor([ids[start : start + T]]))
    layers = []
    for block, kept in zip(model.blocks, seen, strict=True):
        beta = inverse_bandwidth(block.persistent.read.bandwidth.double())[:, None, None]
        scores = [queries[0].double() @ keys.double().mT * beta for queries, keys, _ in kept]
        layers.append(torch.cat(scores, 1).softmax(-1))
    return torch.stack(layers).detach()


def test_the_weights_of_a_position_sum_to_one(model, ids, use):
    for layer in read_text(model, ids).layers:
        assert torch.allclose(layer.slots.all_weights().sum(-1), torch.ones(()).double())
    assert torch.allclose(use.mean_weight.sum(-1), torch.ones(()).double())
    assert torch.allclose(use.top_share.sum(-1), torch.ones(()))


def test_counts_of_calls_are_those_of_a_loop(use, weights):
    positions = WINDOWS * T
    assert (use.positions, use.windows, use.total_windows) == (positions, WINDOWS, WINDOWS)
    for n in range(N):
        for h in range(H):
            wins, sums = [0] * M, [0.0] * M
            for t in range(positions):
                row = weights[n, h, t].tolist()
                wins[row.index(max(row))] += 1
                sums = [a + b for a, b in zip(sums, row, strict=True)]
            assert use.wins[n, h].tolist() == wins
            assert use.mean_weight[n, h].tolist() == pytest.approx([x / positions for x in sums], rel=1e-5)


def test_entropies(use, weights):
    once = -(weights * weights.log()).sum(-1).mean(-1)
    means = weights.mean(2)
    assert torch.allclose(use.effective_at_once, once.exp(), rtol=1e-5)
    assert torch.allclose(use.effective_slots, (-(means * means.log()).sum(-1)).exp(), rtol=1e-5)
    assert (use.effective_at_once <= use.effective_slots + 1e-9).all() and (use.effective_slots <= M).all()


def test_calls_are_the_true_maxima(use, weights):
    for n in range(N):
        for h in range(H):
            for m in range(M):
                calls = use.calls(Slot(n, h, m))
                best, places = weights[n, h, :, m].topk(CALLS)
                assert [call.weight for call in calls] == pytest.approx(best.tolist(), rel=1e-5)
                assert [call.position for call in calls] == places.tolist()
                assert all(call.window == call.position // T * T for call in calls)


def test_slots_that_nothing_calls(use, weights):
    expected = weights.amax(2) <= CALLED
    assert expected.any() and not expected.all()
    assert torch.equal(use.never_called, expected)


def test_a_corpus_with_fewer_positions_than_calls(model, array_tokens):
    use = [*slot_use(model, array_tokens([1, 2]), calls=CALLS)][-1]
    assert sorted(call.position for call in use.calls(Slot(0, 0, 0))) == [0, 1]


def test_most_called(use):
    means = use.mean_weight
    every = use.most_called(N * H * M + 5)
    assert len(set(every)) == N * H * M
    assert [means[slot].item() for slot in every] == sorted(means.flatten().tolist(), reverse=True)
    assert use.most_called(2) == every[:2]
    for layer, head in ((1, None), (None, 2), (1, 2)):
        expected = [s for s in every if layer in (None, s.layer) and head in (None, s.head)]
        assert use.most_called(99, layer, head) == expected


def test_pushes_equal_brute_force(model):
    slots = [Slot(n, h, m) for n in range(N) for h in range(H) for m in (0, M - 1)]
    found = pushes(model, slots)
    D = 12 // H
    for slot, push in zip(slots, found, strict=True):
        memory = model.blocks[slot.layer].persistent
        alpha = torch.exp(10 * memory.read.scale[slot.head]).item()
        written = [0.0] * 12
        for c in range(12):
            for d in range(D):
                value = memory.slot_values[slot.head, slot.index, d].item()
                written[c] += memory.output.weight[c, slot.head * D + d].item() * alpha * value
        mean = sum(written) / 12
        normed = [(x - mean) * weight for x, weight in zip(written, model.norm.weight.tolist(), strict=True)]
        logits = [
            sum(e * x for e, x in zip(row, normed, strict=True)) * model.logit_scale
            for row in model.embedding.weight.tolist()
        ]
        expected = [logit - sum(logits) / V for logit in logits]
        assert push.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_pushes_are_what_a_trace_would_say_times_the_deviation(model, ids):
    reading, position = read_text(model, ids[:T]), 4
    deviation = (reading.final.stream[position].var(correction=0) + reading.final.eps).sqrt()
    logits = torch.stack(
        [
            said(reading.layers[1].slots, reading.final.back(position, reading.direction(token)))[2, 3]
            for token in range(V)
        ]
    )
    expected = (logits - logits.mean()) * deviation
    assert torch.allclose(pushes(model, [Slot(1, 2, 3)])[0].double(), expected, rtol=1e-4, atol=1e-6)


def test_command_writes_what_it_prints(world, mosaic):
    result = mosaic("probe", "memories", "--ckpt", "tiny", "--top", 3, "--contexts", 2, "--json")
    assert result.code == 0 and result.json["schema"] == "mosaic.probe.memories/1"
    folder = world / "runs" / "tiny" / "probes" / "memories"
    assert json.loads((folder / "memories.json").read_text()) == result.json
    assert (folder / "memories.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "memories.svg").read_text()
    assert len(result.json["slots"]) == 3 and [head["head"] for head in result.json["heads"]] == [0, 1]
    for slot in result.json["slots"]:
        ups, downs = ([token["push"] for token in slot[way]] for way in ("up", "down"))
        assert ups == sorted(ups, reverse=True) and downs == sorted(downs) and downs[0] < 0 < ups[0]
        assert len(slot["calls"]) == 2
    for head in result.json["heads"]:
        assert sum(head["mean_weight"]) == pytest.approx(1, abs=1e-3) and len(head["mean_weight"]) == 4


def test_contexts_are_the_text_around_the_call(world, mosaic):
    (world / "short.txt").write_text("Mia saw the kite.\nTom")
    slots = mosaic("probe", "memories", "--ckpt", "tiny", "--on", "short.txt", "--contexts", 99, "--json").json["slots"]
    text = "Mia saw the kite.\nTom<|endoftext|>"
    for call in slots[0]["calls"]:
        start, at = call["position"] // 8 * 8, call["position"] + 1  # characters are tokens; a window holds 8
        expected = text[at] if at < 21 else "<|endoftext|>"
        assert (call["before"], call["next"]) == (text[start:at], expected)
    assert sorted(call["position"] for call in slots[0]["calls"]) == list(range(16)), "two windows of 22 tokens"


def test_the_text_s_last_position_has_no_next_token(world, mosaic):
    (world / "short.txt").write_text("cat")
    arguments = ("probe", "memories", "--ckpt", "tiny", "--on", "short.txt", "--contexts", 9)
    calls = mosaic(*arguments, "--json").json["slots"][0]["calls"]
    (end,) = [call for call in calls if call["position"] == 3]
    assert (end["before"], end["next"]) == ("cat<|endoftext|>", None)
    assert "(end of the text)" in mosaic(*arguments).out


def test_chosen_slots(world, mosaic):
    arguments = ("--layer", 0, "--head", 1, "--slot", 3, "--slot", 0, "--slot", 3)
    values = mosaic("probe", "memories", "--ckpt", "tiny", *arguments, "--json").json
    assert [slot["id"] for slot in values["slots"]] == ["L0.H1.slot.3", "L0.H1.slot.0"]
    assert [(head["layer"], head["head"]) for head in values["heads"]] == [(0, 1)]


def test_tables(world, mosaic):
    result = mosaic("probe", "memories", "--ckpt", "tiny", "--out", "seen")
    assert result.code == 0 and (world / "seen" / "memories.json").is_file()
    assert "L0.H1.slot." in result.out and "never called" in result.out and "→" in result.out


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--layer", "1"], "no layer 1", "only layer is 0"),
        (["--layer", "-1"], "no layer -1", "only layer is 0"),
        (["--head", "2"], "no head 2", "0 to 1"),
        (["--layer", "0", "--head", "0", "--slot", "1", "--slot", "4"], "no slot 4", "0 to 3"),
        (["--slot", "1"], "layer and head", "--layer 0 --head 0 --slot 1"),
        (["--layer", "0", "--slot", "1"], "layer and head", "--head 0"),
        (["--top", "0"], "'--top'", "--help"),
        (["--on", "nowhere.txt"], "nowhere.txt", "val"),
    ],
)
def test_wrong_usage(world, refused, arguments, message, hint):
    error = refused(2, "probe", "memories", "--ckpt", "tiny", *arguments)
    assert message in error["message"] and hint in error["hint"]


def test_a_transformer_has_no_slots(world, refused):
    error = refused(2, "probe", "memories", "--ckpt", "gpt")
    assert "only a mosaic has persistent slots" in error["message"] and "probe patterns" in error["hint"]


def test_hostile_text_cannot_act_on_the_terminal(world, mosaic):
    trained = mosaic("train", "tiny.yaml", "--run", "b", "-s", "data.tokenizer=byte", "-s", "data.dir=data/b")
    assert trained.code == 0, trained.err
    hostile = "\x1b[31mred\x1b[0m \x07\x08 [bold]loud[/bold] [/] \u009b2J\u202egnp.exe :warning: $x^$ 'quoted'\n"
    (world / "hostile.txt").write_text(hostile * 9, encoding="utf-8")  # windows of 8 bytes cut it everywhere
    every = ("--windows", 999, "--contexts", 9999, "--layer", 0, "--head", 0, "--slot", 0)
    arguments = ("probe", "memories", "--ckpt", "b", "--on", "hostile.txt", *every)
    result = mosaic(*arguments)
    assert result.code == 0, result.err
    assert not {"\x1b", "\x07", "\x08", "\u009b", "\u202e"} & set(result.out + result.err)
    shown = ("\\x1b[31m", "\\x07\\x08", "[bold]", "[/bold]", "[/]", "\\x9b2J", "\\u202eg", ":warning")
    assert [text for text in shown if text not in result.out] == []
    befores = {call["before"] for slot in mosaic(*arguments, "--json").json["slots"] for call in slot["calls"]}
    assert any("\x1b[31m" in text for text in befores), "the object holds the text itself"
