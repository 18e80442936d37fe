"""`encode_text` through SQL."""

from __future__ import annotations

import pytest

from tests.embedded.conftest import assert_vectors
from tests.embedded.engine import Engine, QueryError
from tests.toy import text_vector


def test_a_constant(engine: Engine) -> None:
    assert_vectors(engine.value("SELECT encode_text('dog')"), text_vector(b"dog"))


def test_vectors_are_normalised(engine: Engine) -> None:
    norm = engine.value("SELECT L2Norm(encode_text('dog'))")
    assert norm == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 1000, 65_000, 200_000])
def test_every_row_has_its_own_vector(engine: Engine, rows: int) -> None:
    found = engine.query(
        f"SELECT number, encode_text('w' || toString(number)) FROM numbers({rows}) "
        "SETTINGS max_block_size = 65000"
    )
    assert len(found) == rows
    step = max(1, rows // 5000)
    sample = found[::step] + found[-1:]
    assert_vectors(
        [vector for _, vector in sample],
        [text_vector(b"w%d" % int(number)) for number, _ in sample],
    )


def test_several_threads(engine: Engine) -> None:
    found = engine.query(
        "SELECT number, encode_text('w' || toString(number)) FROM numbers_mt(50000) "
        "SETTINGS max_threads = 8, max_block_size = 1000"
    )
    assert sorted(int(number) for number, _ in found) == list(range(50000))
    sample = found[::17]
    assert_vectors([v for _, v in sample], [text_vector(b"w%d" % int(n)) for n, _ in sample])


def test_no_rows(engine: Engine) -> None:
    assert engine.query("SELECT encode_text(toString(number)) FROM numbers(0)") == []


def test_an_empty_text(engine: Engine) -> None:
    assert_vectors(engine.value("SELECT encode_text('')"), text_vector(b""))


def test_repeated_texts(engine: Engine) -> None:
    found = engine.query(
        "SELECT number % 7, encode_text('r' || toString(number % 7)) FROM numbers(9999)"
    )
    assert_vectors([v for _, v in found], [text_vector(b"r%d" % int(n)) for n, _ in found])


@pytest.mark.parametrize(
    "text", [r"a\tb", r"a\nb", r"a\0b", r"it\'s", r'"', r"\\", r"a\r\nb", "dog🐕", r"\xff\xfe"]
)
def test_any_characters_arrive_and_do_not_disturb_their_neighbours(
    engine: Engine, text: str
) -> None:
    texts = f"arrayJoin(['one', '{text}', 'two', '{text}'])"
    found = engine.query(f"SELECT encode_text({texts}) AS v")
    vectors = [row[0] for row in found]
    assert_vectors([vectors[0], vectors[2]], [text_vector(b"one"), text_vector(b"two")])
    assert vectors[1] == vectors[3]
    assert vectors[1] != vectors[0]


def test_a_text_over_the_context_length_is_cut(engine: Engine) -> None:
    assert_vectors(engine.value("SELECT encode_text(repeat('a', 5000))"), text_vector(b"a" * 5000))


def test_array_map(engine: Engine) -> None:
    found = engine.value("SELECT arrayMap(x -> encode_text(x), ['cat', 'dog', 'cat'])")
    assert_vectors(found, [text_vector(b"cat"), text_vector(b"dog"), text_vector(b"cat")])


@pytest.mark.parametrize(
    "expression",
    [
        "toLowCardinality('dog')",
        "toFixedString('dog', 3)",
        "toFixedString('dog', 5)",
        "toNullable('dog')",
        "toLowCardinality(toNullable('dog'))",
        "materialize('dog')",
        "materialize(toLowCardinality('dog'))",
        "materialize(toFixedString('dog', 5))",
        "materialize(toNullable('dog'))",
        "materialize(toNullable(toFixedString('dog', 5)))",
    ],
)
def test_string_types(engine: Engine, expression: str) -> None:
    assert_vectors(engine.value(f"SELECT encode_text({expression})"), text_vector(b"dog"))


def test_string_type_columns(engine: Engine) -> None:
    found = engine.query(
        "SELECT number, encode_text(toNullable(toString(number))), "
        "encode_text(toLowCardinality(toString(number))), "
        "encode_text(toFixedString(toString(number), 8)) FROM numbers(1000)"
    )
    expected = [text_vector(str(int(number)).encode()) for number, *_ in found]
    for column in (1, 2, 3):
        assert_vectors([row[column] for row in found], expected)


def test_null_is_an_error_and_its_neighbours_are_not_hurt(engine: Engine) -> None:
    with pytest.raises(QueryError):
        engine.query(
            "SELECT encode_text(if(number = 500, NULL, toString(number))) FROM numbers(1000)"
        )
    assert_vectors(engine.value("SELECT encode_text('after')"), text_vector(b"after"))


@pytest.mark.parametrize("number", ["12345678", "materialize(toUInt8(200))", "toFloat64(1)"])
def test_numbers_are_right_or_refused_by_name(engine: Engine, number: str) -> None:
    """Newer engines cast the argument; older ones send its own type."""
    for expression in (number, f"arrayJoin([{number}, {number}])"):
        try:
            found = engine.query(f"SELECT encode_text({expression}), toString({number})")
        except QueryError as error:
            message = str(error)
        else:
            expected = [text_vector(text.encode()) for _, text in found]
            assert_vectors([vector for vector, _ in found], expected)
            continue
        assert "use toString()" in message
    assert_vectors(engine.value("SELECT encode_text('after')"), text_vector(b"after"))


def test_arrays_are_cast_or_refused(engine: Engine) -> None:
    try:
        found = engine.value("SELECT encode_text(['a', 'b'])")
    except QueryError:
        pass
    else:
        assert found == engine.value("SELECT encode_text(toString(['a', 'b']))")
    assert_vectors(engine.value("SELECT encode_text('after')"), text_vector(b"after"))


def test_many_queries_at_once(engine: Engine) -> None:
    answers = [engine.start(f"SELECT encode_text('q{number}')") for number in range(64)]
    assert_vectors(
        [answer.result(60)[0][0] for answer in answers],
        [text_vector(b"q%d" % number) for number in range(64)],
    )
