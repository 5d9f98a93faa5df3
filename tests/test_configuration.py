"""Configuration: what a YAML file may say, and what it is told when it says something else."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from amortized_bayes.configuration import load_config, to_mapping
from amortized_bayes.results.encoding import yaml_bytes


@dataclass(frozen=True)
class Training:
    learning_rate: float = 1e-3
    num_steps: int = 100
    warm: bool = False

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"expected num_steps of 1 or more,\n got {self.num_steps}")


@dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (1, 4, 16)
    pair: tuple[int, float] = (1, 2.0)
    names: tuple[str, ...] = ()
    guide: Literal["amortized", "factorized"] = "amortized"
    seed: int | None = None
    either: float | int | str = 1
    data_dir: Path | None = None
    out: Path = Path("results")
    title: str = ""
    training: Training = field(default_factory=lambda: Training(num_steps=7))
    again: Training | None = None
    nested: tuple[Training, ...] = ()


@dataclass(frozen=True)
class Required:
    size: int


def load(tmp_path: Path, text: str | bytes, cls: Any = Config, base: Any = None) -> Any:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(cls, path, base)


EVERYTHING = Config(
    widths=(),
    pair=(3, 0.1),
    names=("yes", "1e-3", "", "2020-01-01", "a: b\n#c"),
    guide="factorized",
    seed=0,
    either="1",
    data_dir=Path("a b/c"),
    title="null",
    training=Training(1e-300, 2, True),
    again=Training(math.inf),
    nested=(Training(), Training(2.0)),
)


@pytest.mark.parametrize("config", [Config(), EVERYTHING, Config(either=1.5), Config(either="1e-3")])
def test_what_is_dumped_loads_as_it_was(tmp_path: Path, config: Config) -> None:
    loaded = load(tmp_path, yaml_bytes(to_mapping(config)).decode())
    assert loaded == config
    assert repr(loaded) == repr(config)  # 1 == 1.0 == True, but their texts differ


@pytest.mark.slow
def test_round_trip_of_anything(tmp_path: Path) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    floats = st.floats(allow_nan=False)
    training = st.builds(Training, floats, st.integers(min_value=1), st.booleans())
    configs = st.builds(
        Config,
        widths=st.lists(st.integers(), max_size=3).map(tuple),
        pair=st.tuples(st.integers(), floats),
        names=st.lists(text, max_size=3).map(tuple),
        guide=st.sampled_from(["amortized", "factorized"]),
        seed=st.none() | st.integers(),
        either=st.integers() | floats | text,
        title=text,
        training=training,
        again=st.none() | training,
        nested=st.lists(training, max_size=2).map(tuple),
    )

    @hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @hypothesis.given(configs)
    def check(config: Config) -> None:
        assert repr(load(tmp_path, yaml_bytes(to_mapping(config)).decode())) == repr(config)

    check()


@pytest.mark.parametrize(
    ("text", "field_name", "expected"),
    [
        ("widths: [1, 2]", "widths", (1, 2)),
        ("training: {learning_rate: 1e-2}", "training", Training(0.01, 7)),  # the rest from the outer default
        ("training: {learning_rate: 1}", "training", Training(1.0, 7)),
        ("again: {warm: true}", "again", Training(warm=True)),
        ("seed: null", "seed", None),
        ("\ufefftitle: é", "title", "é"),
        ("either: 3", "either", 3),
    ],
)
def test_reads(tmp_path: Path, text: str, field_name: str, expected: object) -> None:
    value = getattr(load(tmp_path, text), field_name)
    assert value == expected
    assert type(value) is type(expected)


def test_integers_become_floats(tmp_path: Path) -> None:
    assert type(load(tmp_path, "training: {learning_rate: 1}").training.learning_rate) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width: [1]", "unknown key 'width', did you mean 'widths'?"),
        ("training: {num_step: 1}", "unknown key 'training.num_step', did you mean 'num_steps'?"),
        ("zzzzzz: 1", "unknown key 'zzzzzz', expected one of widths, pair"),
        ("1: 2", "unknown key '1'"),
        ("widths: 3", "widths: expected a list of int, got 3 (int)"),
        ("widths: [1, two]", "widths[1]: expected int, got 'two' (str)"),
        ("widths: [true]", "widths[0]: expected int, got True (bool)"),
        ("pair: [1]", "pair: expected 2 values, got 1"),
        ("seed: 1.0", "seed: expected int, got 1.0 (float)"),
        ("seed: no", "seed: expected int, got False (bool)"),
        ("guide: flow", "guide: expected one of 'amortized', 'factorized', got 'flow' (str)"),
        ("either: true", "either: expected float or int or str, got True (bool)"),
        ("either: null", "either: expected float or int or str, got null"),
        ("out: 3", "out: expected Path, got 3 (int)"),
        ("title: 3", "title: expected str, got 3 (int)"),
        ("title: 2020-01-01", "title: expected str, got datetime.date(2020, 1, 1) (date)"),
        ("training: 3", "training: expected a mapping of keys to values, got 3 (int)"),
        ("training: {learning_rate: fast}", "training.learning_rate: expected float, got 'fast' (str)"),
        ("training: {learning_rate: true}", "training.learning_rate: expected float, got True (bool)"),
        ("training: {learning_rate: 1" + "0" * 400 + "}", "training.learning_rate: expected float"),
        ("training: {warm: 1}", "training.warm: expected bool, got 1 (int)"),
        ("training: {num_steps: 0}", "training.expected num_steps of 1 or more, got 0"),
        ("nested: [{num_steps: x}]", "nested[0].num_steps: expected int"),
        ("", "expected a mapping of keys to values, got null"),
        ("- 1", "expected a mapping of keys to values, got [1] (list)"),
        ("a: [", "line 1: expected YAML"),
        ("a: 1\nb: *c", "expected YAML, got an anchor or alias in line 2 (settings are written out in full)"),
        ("seed: &a 1", "expected YAML, got an anchor or alias in line 1"),
        ("seed: 1\n<<: {title: a}", "expected YAML, got a merge key in line 2"),
        ("'<<': 1", "unknown key '<<'"),
        ("seed: 1\ntitle: a\nseed: 2", "expected YAML, got the key 'seed' a second time in line 3"),
        ("training: {num_steps: 1, num_steps: 2}", "got the key 'num_steps' a second time in line 1"),
        ("title: !!python/object/apply:os.getcwd []", "expected YAML, got could not determine a constructor"),
        ("seed: !!bool perhaps", "expected YAML"),
        ("seed: 2020-13-45", "expected YAML"),
        ("[" * 5000, "expected YAML, got lists and mappings 21 deep in line 1"),
        ("- " * 5000, "expected YAML, got lists and mappings 21 deep in line 1"),
        ("seed: [[[[[[[1]]]]]]]", "seed: expected int, got [[[[[[[...]]]]]]] (list)"),
        ("seed: " + "1" * 200_000, "expected a file of at most 200,000 bytes, got 200,006"),
        (b"\x89PNG\r\n\xff", "expected a YAML text in UTF-8"),
        (b"a\0b", "expected YAML"),
    ],
)
def test_refuses_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml") as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 300


def test_aliases_that_blow_up_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(ValueError, match="an anchor or alias in line 1"):
        load(tmp_path, "\n".join(lines))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*none.yaml: No such file"):
        load_config(Config, tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"expected a plain file, got .*: a folder"):
        load_config(Config, tmp_path)


def test_a_field_without_default_must_be_given(tmp_path: Path) -> None:
    assert load(tmp_path, "size: 3", Required) == Required(3)
    with pytest.raises(ValueError, match="expected a value for size, got none"):
        load(tmp_path, "{}", Required)


def test_what_a_file_does_not_say_is_as_in_the_base(tmp_path: Path) -> None:
    base = Config(seed=3, training=Training(num_steps=9))
    changed = load(tmp_path, "{training: {warm: true}, widths: [2]}", base=base)
    assert changed == Config(seed=3, training=Training(num_steps=9, warm=True), widths=(2,))
    assert base == Config(seed=3, training=Training(num_steps=9))
    assert load(tmp_path, "{}", base=base) == base
    assert load(tmp_path, yaml_bytes(to_mapping(EVERYTHING)), base=base) == EVERYTHING
    with pytest.raises(ValueError, match=r"config\.yaml: unknown key 'sed'"):
        load(tmp_path, "sed: 1", base=base)


def test_an_annotation_that_no_file_can_fill_is_an_error_of_the_programmer(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Odd:
        table: Any = None

    with pytest.raises(TypeError, match="table"):
        load(tmp_path, "table: 1", Odd)
