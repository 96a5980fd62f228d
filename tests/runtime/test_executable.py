"""Calls of an executable: the model's arguments, its result, and what cannot be honoured."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import irx
from irx.errors import BatchTooLarge, InputMismatch, PromptTooLong, UnsupportedArgument
from irx.ir.regions import expanded
from irx.runtime.output import Output, rebuild
from tests.runtime.conftest import close, eager


def test_the_result_is_the_models_own_class(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    result = fast(ids)
    assert type(result) is type(model(ids))
    assert close(result.logits, eager(model, ids))
    assert result.past_key_values is None
    assert torch.equal(result[0], result["logits"])


def test_arguments_by_position_by_name_and_without_effect(fast: irx.Executable, ids: torch.Tensor) -> None:
    expected = fast(ids).logits
    for result in (
        fast(input_ids=ids),
        fast(ids, None),
        fast(ids, use_cache=True, return_dict=True, past_key_values=None),
        fast(ids, attention_mask=torch.ones_like(ids)),
    ):
        assert torch.equal(result.logits, expected)
    (logits,) = fast(ids, return_dict=False)
    assert torch.equal(logits, expected)
    assert torch.equal(fast(ids, logits_to_keep=2).logits, expected[:, -2:])
    assert torch.equal(fast(ids, logits_to_keep=0).logits, expected)


def test_padding_on_the_right_needs_no_mask(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    result = fast(ids, attention_mask=mask).logits
    expected = model(input_ids=ids, attention_mask=mask).logits
    assert close(result[1, :12], expected[1, :12])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_hidden_states": True}, "'output_hidden_states' was not captured"),
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "'inputs_embeds' was not captured"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1]])}, "'attention_mask' was not captured"),
        ({"no_such_thing": 1}, "'no_such_thing' was not captured"),
    ],
    ids=["flag", "tensor", "left padding", "unknown"],
)
def test_what_was_not_captured_is_refused(
    fast: irx.Executable, ids: torch.Tensor, arguments: Any, message: str
) -> None:
    with pytest.raises(UnsupportedArgument, match=message):
        fast(ids[:1, :4], **arguments)


def test_too_many_positions_and_names_given_twice(fast: irx.Executable, ids: torch.Tensor) -> None:
    with pytest.raises(UnsupportedArgument, match="by position and by name"):
        fast(ids, input_ids=ids)
    with pytest.raises(UnsupportedArgument):
        fast(*[ids] * 30)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (torch.zeros(2, 3), InputMismatch, "is f32, but i64"),
        (torch.zeros(3, dtype=torch.int64), InputMismatch, r"has shape \[3\]"),
        (torch.zeros(5, 3, dtype=torch.int64), BatchTooLarge, "a batch of 5 rows, but max_batch is 4"),
        (torch.zeros(1, 97, dtype=torch.int64), PromptTooLong, "97 tokens are wanted, but max_length is 96"),
        (torch.zeros(1, 0, dtype=torch.int64), InputMismatch, "size S = 0"),
        (torch.zeros(2, 3, dtype=torch.int64, device="meta"), InputMismatch, "on meta, the compiled model on cpu"),
        ([[1, 2]], InputMismatch, "a list, not a tensor"),
    ],
)
def test_inputs_that_do_not_fit(fast: irx.Executable, wrong: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fast(wrong)
    with pytest.raises(InputMismatch, match="is missing"):
        fast()


class Block(torch.nn.Module):
    """Two inputs of one length, several results, a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor, twice: bool = False) -> dict[str, Any]:
        z = self.project(x) + y
        return {"sum": z * 2 if twice else z, "parts": (x + 1, [y - 1])}


def test_plain_modules_keep_the_structure_of_their_results() -> None:
    torch.manual_seed(0)
    block, x, y = Block().eval(), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    compiled = irx.compile(block, {"x": x, "y": y, "twice": True}, target="torch")
    x, y = torch.randn(4, 7, 4), torch.randn(4, 7, 4)
    result, expected = compiled(x, y, True), block(x, y, True)
    assert close(result["sum"], expected["sum"].detach())
    assert torch.equal(result["parts"][0], x + 1)
    assert torch.equal(result["parts"][1][0], y - 1)
    with pytest.raises(UnsupportedArgument, match="captured as True"):
        compiled(x, y, twice=False)
    with pytest.raises(InputMismatch, match=r"input 'y' has shape \[4, 6, 4\]"):
        compiled(x, y[:, :6])
    with pytest.raises(UnsupportedArgument, match="this program has no cache"):
        compiled.generate(torch.ones(1, 1, dtype=torch.int64), max_new_tokens=1)
    with pytest.raises(UnsupportedArgument, match="this program has no cache"):
        compiled.session()


def test_an_executable_is_a_snapshot_of_the_weights() -> None:
    block, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    compiled = irx.compile(block, x, target="torch")
    before = compiled(x)
    with torch.no_grad():
        block.weight.zero_()
    assert torch.equal(compiled(x), before)


def test_outputs_have_fields_keys_and_indices() -> None:
    one, two = torch.ones(1), torch.ones(2)
    tree = ["no.such.Class", {"first": "a", "nothing": None, "nested": ["tuple", {"0": "b"}]}]
    output = rebuild(tree, {"a": one, "b": two}, classes=True)
    assert isinstance(output, Output)
    assert output.first is output[0] is output["first"] is one
    assert output.nothing is None
    assert output.nested == output[1] == (two,)
    assert list(output) == output.keys() == ["first", "nested"]
    assert len(output) == 2
    assert output.to_tuple() == output[:]
    assert repr(output) == "Output(first=torch.float32[1], nested=tuple)"
    with pytest.raises(AttributeError):
        _ = output.third


def test_threads_take_turns(model: Any, fast: irx.Executable, ids: torch.Tensor) -> None:
    """Each thread has a session of its own and calls forward in between."""
    expected = [model.generate(ids[i : i + 1], max_new_tokens=16, do_sample=False, eos_token_id=None) for i in range(3)]
    found: dict[int, Any] = {}

    def run(i: int) -> None:
        tokens = fast.generate(ids[i : i + 1], max_new_tokens=16)
        found[i] = (tokens, fast(ids[i : i + 1]).logits)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, wanted in enumerate(expected):
        assert found[i][0].tolist() == wanted.tolist()
        assert close(found[i][1], eager(model, ids[i : i + 1]))


def test_a_profile_lists_every_step(fast: irx.Executable, ids: torch.Tensor) -> None:
    profile = fast.profile(ids, repeat=2)
    assert {"irx.linear", "irx.attention", "irx.rope"} <= profile.by_op().keys()
    ops = [node.op.name for node in expanded(irx.parse(fast.program).graphs["forward"]).nodes]
    assert profile.by_op()["irx.linear"][0] == ops.count("linear")
    assert any(step.place == "model.layers.1.mlp.down_proj" for step in profile.steps)
    assert all(step.seconds >= 0 for step in profile.steps)
    assert profile.seconds == pytest.approx(sum(seconds for _, seconds in profile.by_op().values()))
    assert str(profile).splitlines()[-1].startswith("all")


def test_what_an_executable_says_of_itself(fast: irx.Executable) -> None:
    memory = fast.memory()
    weights = sum(p.numel() * 4 for p in (*irx.parse(fast.program).weights,) for p in [_Size(p)])
    assert memory.weights == weights
    assert memory.total == memory.weights + memory.cache + memory.buffers
    assert "weights" in str(memory)
    assert "insert-cache" in fast.pipeline
    assert {"forward", "prefill", "decode"} == irx.parse(fast.program).graphs.keys()
    assert fast.ledger().summary.backend == "torch"
    assert repr(fast) == "<Executable LlamaForCausalLM on cpu: forward, prefill, decode>"


class _Size:
    def __init__(self, entry: Any) -> None:
        self.entry = entry

    def numel(self) -> int:
        return int(self.entry.weight.tensor.elements)
