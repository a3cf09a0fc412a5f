"""A document means in every later version what it meant when it was written, and keeps its canonical text.

The versions of a product are classes here: each knows the formats up to its own.
"""

from typing import Annotated, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import Document, PolicyConfig, RunConfig, SiteConfig, Table, canonical, from_canonical, parse
from common.document.formats import Since, Was
from common.errors import ConfigError
from server.commands.template import TEMPLATE


class Net1(Table):
    width: int = 4
    kind: str = "plain"


class Run1(Document):
    KIND: ClassVar[str] = "run"
    name: str
    net: Net1 = Net1()
    head: Net1 | None = None
    more: tuple[Net1, ...] = ()


class Net2(Table):
    width: Annotated[int, Was(4, until=1)] = 8
    kind: str = "plain"
    depth: Annotated[int, Since(2)] = 1


class Run2(Document):
    KIND: ClassVar[str] = "run"
    LATEST: ClassVar[int] = 2
    name: str
    net: Net2 = Net2()
    head: Net2 | None = None
    more: tuple[Net2, ...] = ()


class Extra(Table):
    on: bool = False
    level: Annotated[int, Since(3)] = 0


class Net3(Table):
    width: Annotated[int, Was(4, until=1), Was(8, until=2)] = 16
    kind: str = "plain"
    depth: Annotated[int, Since(2), Was(1, until=2)] = 2


class Run3(Document):
    KIND: ClassVar[str] = "run"
    LATEST: ClassVar[int] = 3
    name: str
    net: Net3 = Net3()
    head: Net3 | None = None
    more: tuple[Net3, ...] = ()
    extra: Annotated[Extra, Since(3)] = Extra()


class Study(Table):
    """Holds a run, as a scenario does."""

    run: Run3


OF_FORMAT_1 = [
    'name = "a"',
    'name = "a"\nformat = 1',
    'name = "a"\n[net]\nkind = "other"',
    'name = "a"\n[net]\nwidth = 8\n[head]',
    'name = "a"\n[head]\nwidth = 5\n[[more]]\n[[more]]\nwidth = 16',
]
OF_FORMAT_2 = [
    'format = 2\nname = "a"',
    'format = 2\nname = "a"\n[net]\ndepth = 3\n[head]\nkind = "other"',
    'format = 2\nname = "a"\n[net]\ndepth = 1\n[[more]]\ndepth = 2\n[[more]]',
]


@pytest.mark.parametrize("text", OF_FORMAT_1)
@pytest.mark.parametrize("later", [Run2, Run3])
def test_a_later_version_gives_a_document_of_format_1_the_text_that_it_had(text: str, later: type[Document]) -> None:
    assert canonical(parse(later, text)) == canonical(parse(Run1, text))


@pytest.mark.parametrize("text", OF_FORMAT_2)
def test_a_later_version_gives_a_document_of_format_2_the_text_that_it_had(text: str) -> None:
    assert canonical(parse(Run3, text)) == canonical(parse(Run2, text))


def test_the_text_of_format_1_has_neither_format_nor_later_keys() -> None:
    net = '{"kind":"plain","width":4}'
    assert canonical(parse(Run3, 'name = "a"')) == f'{{"head":null,"more":[],"name":"a","net":{net}}}'


def test_a_document_reads_with_the_defaults_of_its_own_format() -> None:
    widths = [parse(Run3, f'format = {number}\nname = "a"\n[head]').head for number in (1, 2, 3)]
    assert [(one.width, one.depth) for one in widths if one] == [(4, 1), (8, 1), (16, 2)]
    assert [parse(Run3, f'format = {number}\nname = "a"').net.width for number in (1, 2, 3)] == [4, 8, 16]
    assert [one.net.width for one in (Run3(name="a"), Run3(name="a", format=3))] == [4, 16]
    assert parse(Study, '[run]\nname = "a"').run.net.width == 4
    assert parse(Study, '[run]\nname = "a"\nformat = 3').run.net.width == 16


@pytest.mark.parametrize("text", [*OF_FORMAT_1, *OF_FORMAT_2])
def test_a_text_that_an_earlier_version_wrote_is_read_as_it_was_meant(text: str) -> None:
    writer = Run2 if text in OF_FORMAT_2 else Run1
    issued = canonical(parse(writer, text))
    read = from_canonical(Run3, issued)
    assert read == parse(Run3, text)
    assert canonical(read) == issued


values: st.SearchStrategy[dict[str, object]] = st.builds(
    dict,
    format=st.integers(1, 3),
    name=st.just("a"),
    net=st.fixed_dictionaries({}, optional={"width": st.sampled_from([4, 8, 16, 5]), "depth": st.integers(1, 3)}),
    extra=st.fixed_dictionaries({}, optional={"on": st.booleans(), "level": st.integers(0, 1)}),
)


@given(values)
def test_what_is_read_is_what_was_written(written: dict[str, object]) -> None:
    try:
        run = Run3.model_validate(written)
    except ValueError:
        assert written["format"] != 3
    else:
        assert from_canonical(Run3, canonical(run)) == run


def test_two_values_of_a_later_key_have_two_texts() -> None:
    texts = {
        canonical(Run3(format=3, name="a", net=Net3(width=width, depth=depth))) for width in (4, 8) for depth in (1, 2)
    }
    assert len(texts) == 4


@pytest.mark.parametrize(
    ("model", "kind"), [(RunConfig, "run"), (SiteConfig, "site.toml"), (PolicyConfig, "policy.toml")]
)
def test_a_document_of_a_later_format_is_refused_as_that(model: type[Document], kind: str) -> None:
    """Whatever else is new in it."""
    later = model.LATEST + 1
    with pytest.raises(ConfigError) as raised:
        parse(model, f"format = {later}\nsecure-sum = true\n[nobody-knows]\nthis = 1")
    said = f"this {kind} is of format {later}, this version reads up to {model.LATEST}: update wardround"
    assert str(raised.value) == f"text: {said}."
    with pytest.raises(ConfigError, match=said):
        from_canonical(model, f'{{"format":{later},"secure-sum":true}}')


def test_a_scenario_says_so_of_its_run() -> None:
    with pytest.raises(ConfigError, match="run: this run is of format 4, this version reads up to 3"):
        parse(Study, '[run]\nname = "a"\nformat = 4')


@pytest.mark.parametrize(
    ("text", "key", "format_"),
    [
        ('name = "a"\n[net]\ndepth = 2', "net.depth", 2),
        ('format = 2\nname = "a"\n[extra]\non = true', "extra", 3),
        ('name = "a"\n[[more]]\n[[more]]\ndepth = 3', "more.1.depth", 2),
    ],
)
def test_a_later_key_in_an_earlier_document_is_refused_with_what_to_write(text: str, key: str, format_: int) -> None:
    with pytest.raises(ConfigError, match=f"{key} is a key of format {format_}. Write format = {format_} at the top"):
        parse(Run3, text)


@pytest.mark.parametrize("said", ["0", "-1", "true", "1.5", '"2"'])
def test_a_format_is_a_whole_number_from_1(said: str) -> None:
    with pytest.raises(ConfigError, match="format is "):
        parse(Run3, f'format = {said}\nname = "a"')


def test_new_run_documents_are_of_the_newest_format() -> None:
    assert parse(RunConfig, TEMPLATE).format == RunConfig.LATEST
