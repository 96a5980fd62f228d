"""The text of pipelines: what it means, that it round-trips, and what is said about mistakes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irx.errors import (
    BadOption,
    IRXError,
    ParseError,
    PassConflict,
    PipelineOrder,
    UnknownOption,
    UnknownPass,
    UnknownPreset,
)
from irx.pipeline.options import option_types
from irx.pipeline.pipeline import Pipeline
from tests.pipeline.toys import INDEX, Blur, Flip, Late, Look, Options

PRESETS = {"none": "look", "default": 'none | flip | late{to="x"}'}


def read(text: str) -> Pipeline:
    return Pipeline.parse(text, INDEX, presets=PRESETS)


def test_options_are_typed_by_their_fields() -> None:
    text = 'options{bits=8, keep-ratio=1, fast=true, scheme=kivi, kind="full", layers=[1, -2], pair=[a, 2], window=3}'
    (found,) = read(text).passes
    assert found == Options(8, 1.0, True, "kivi", "full", (1, -2), ("a", 2.0), 3)
    assert isinstance(found, Options)
    assert type(found.keep_ratio) is float
    assert type(found.pair[1]) is float


def test_lists_need_no_brackets() -> None:
    assert read("options{layers=1, 2, bits=4, pair=a,2}") == read("options{layers=[1, 2], bits=4, pair=[a, 2]}")
    assert str(read("options{layers=1,2}")) == "options{layers=[1, 2]}"


def test_underscores_do_for_hyphens() -> None:
    assert read("options{keep_ratio=0.25}") == read("options{keep-ratio=0.25}")


def test_text_leaves_out_defaults() -> None:
    assert str(Pipeline((Look(), Options(window=2), Flip(error=0.5)))) == "look | options{window=2} | flip{error=0.5}"
    assert str(Pipeline()) == ""
    assert read("  ") == Pipeline()


words = st.text(max_size=8)
floats = st.floats(allow_nan=False)
option_passes = st.builds(
    Options,
    bits=st.integers(1, 2**70),
    keep_ratio=floats,
    fast=st.booleans(),
    scheme=words,
    kind=st.sampled_from(["half", "full"]),
    layers=st.lists(st.integers()).map(tuple),
    pair=st.tuples(words, floats),
    window=st.none() | st.integers(),
)
random_passes = st.one_of(
    st.builds(Look, op=words), option_passes, st.builds(Flip, error=st.none() | floats), st.builds(Blur)
)


@given(st.lists(random_passes, max_size=5))
def test_random_pipelines_round_trip(passes: list[Look | Options | Flip]) -> None:
    pipeline = Pipeline(tuple(sorted(passes, key=lambda one: one.stage)))
    again = read(str(pipeline))
    assert again == pipeline
    assert repr(again) == repr(pipeline)
    assert str(again) == str(pipeline)


@given(st.text(st.sampled_from('look|flip{}[]=,"01.-eéx \\\n')))
def test_any_text_is_a_pipeline_or_an_error_of_ours(text: str) -> None:
    try:
        pipeline = read(text)
    except IRXError:
        return
    assert read(str(pipeline)) == pipeline


def test_presets_are_extended_by_stage() -> None:
    assert str(read("none")) == "look"
    assert str(read("default")) == 'look | flip | late{to="x"}'
    assert str(read("default | look{op=tanh}")) == 'look{op="tanh"} | flip | late{to="x"}'
    assert str(read("none | options | flip")) == "look | options | flip"
    assert str(read("default | blur")) == 'look | flip | blur | late{to="x"}'
    assert str(read("default | blur | blur")) == 'look | flip | blur | blur | late{to="x"}'


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("lok", UnknownPass, "did you mean 'look'?"),
        ("look | flipp", UnknownPass, "did you mean 'flip'?"),
        ("defalt", UnknownPreset, "did you mean 'default'?"),
        ("look{opp=add}", UnknownOption, "did you mean 'op'?"),
        ("options{keep-ration=1}", UnknownOption, "did you mean 'keep-ratio'?"),
        ("flip | look", PipelineOrder, "'look' of stage NORMALIZE stands behind 'flip' of FUSE"),
        ("default | flip | look", PipelineOrder, "'look' of stage NORMALIZE stands behind 'flip'"),
        ('late{to="x"}', PipelineOrder, "'late' needs 'look'"),
        ("look | none", PipelineOrder, "the preset 'none' stands behind a pass"),
        ("default | options", PassConflict, "'options' and 'late' cannot be in one pipeline"),
        ("none{a=1}", BadOption, "the preset 'none' has no options"),
        ("look | late", BadOption, "option 'to' of pass 'late' must be given"),
        ("options{bits=2.5}", BadOption, "option 'bits' of pass 'options' must be int, not 2.5"),
        ("options{bits=true}", BadOption, "must be int, not true"),
        ("options{bits=0}", BadOption, "bits is 0, but must be positive"),
        ("options{fast=1}", BadOption, "must be bool, not 1"),
        ("options{kind=hlaf}", BadOption, "did you mean 'half'?"),
        ("options{layers=3}", BadOption, "must be a list of int, not 3"),
        ("options{layers=[1, x]}", BadOption, 'must be a list of int, not [1, "x"]'),
        ("options{pair=[a]}", BadOption, "must be a list [str, float]"),
        ("options{window=1.5}", BadOption, "must be int or none, not 1.5"),
        ("options{scheme=4}", BadOption, "must be str, not 4"),
        ("look | ", ParseError, "<pipeline>:1:8: expected the name of a pass"),
        ("look{op=", ParseError, "<pipeline>:1:9: expected a value"),
        ("look{op=a", ParseError, "expected '}'"),
        ("look flip", ParseError, "<pipeline>:1:6: expected '|', found 'flip'"),
        ("look{op=a, op=b}", ParseError, "<pipeline>:1:12: option 'op' is given twice"),
        ('look{op="a}', ParseError, "<pipeline>:1:9"),
        ("options{layers=[[1]]}", ParseError, "a list cannot hold lists"),
    ],
)
def test_mistakes_are_named(text: str, kind: type[IRXError], message: str) -> None:
    with pytest.raises(kind) as caught:
        read(text)
    assert message in str(caught.value)


def test_types_in_words() -> None:
    assert option_types(Late) == {"to": "str"}
    assert option_types(Options)["kind"] == 'one of "half", "full"'
