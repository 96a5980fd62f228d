import pickle

import pytest

from irx import errors
from irx.errors import IRXError, MissingExtra, NameClash, ParseError, PromptTooLong, UnknownPass, VerifyError, nearest

EXAMPLES = [
    IRXError("it failed", where="model.layers.0", fix="try again"),
    UnknownPass("fuse-nrm", ["fuse-norm"], where="step 2"),
    ParseError("expected ':'", line=3, column=5, source="\tab cd"),
    PromptTooLong(20, 10),
    VerifyError(4, "a value is used before it is defined"),
    MissingExtra("gguf", "hf"),
    NameClash("pass", "cse", "a.py", "b.py"),
]


def test_a_message_says_what_where_and_what_to_do() -> None:
    assert (
        str(IRXError("it failed", where="model.layers.0", fix="try again")) == "it failed; at model.layers.0; try again"
    )
    assert str(IRXError("it failed")) == "it failed"


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_cross_process_borders(error: IRXError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_every_class_says_when_it_is_raised() -> None:
    classes = [item for item in vars(errors).values() if isinstance(item, type) and item.__module__ == errors.__name__]
    assert [item.__name__ for item in classes if not item.__doc__] == []
    assert [item.__name__ for item in classes if not issubclass(item, IRXError)] == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [("fuse_norm", "fuse-norm"), ("Fuse-Nrom", "fuse-norm"), ("cs", "cse"), ("zzzzzz", None), ("", None)],
)
def test_nearest(name: str, meant: str | None) -> None:
    assert nearest(name, ["fuse-norm", "cse", "fold-constants"]) == meant


def test_an_unknown_name_lists_the_known_ones() -> None:
    error = UnknownPass("zzz", ["b", "a"], fix="see irx passes")
    assert str(error) == "unknown pass 'zzz'; known: a, b; see irx passes"
    assert error.suggestion is None


def test_the_caret_stands_under_its_column() -> None:
    text = str(ParseError("expected ':'", line=3, column=5, source="\tab cd\n", file="x.irx", fix="add one"))
    head, source, caret = text.split("\n")
    assert head == "x.irx:3:5: expected ':'; add one"
    assert source.expandtabs()[caret.expandtabs().index("^")] == "c"
