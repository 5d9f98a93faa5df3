"""Figures of benchmarks, kept and compared: a slower commit is found, noise is not, and other things are refused."""

import importlib
import importlib.util
import json
import random
import runpy
import statistics
import sys
from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images

import amortized_bayes

ROOT = Path(amortized_bayes.__file__).parents[1]
KEPT = ROOT / "results/benchmarks"
NOISE, ROUNDS = 0.03, 11
"""Of one round, and how many there are: worse than a quiet machine's."""


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("compare", ROOT / "benchmarks/compare.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["compare"]


def rounds(generator, ratio=0.4, num=ROUNDS):
    return [ratio * generator.lognormvariate(0, NOISE) for _ in range(num)]


def written(path, ratios, **changes):
    environment = {"threads": 1, "device": "cpu", "gpu": None, "processor": "one", "packages": {"torch": "2.13"}}
    environment |= {name: changes.pop(name) for name in [*changes] if name in environment}
    path.write_text(json.dumps({"environment": environment, "quick": False, "ratios": ratios, **changes}))
    return path


@pytest.fixture
def run(compare, monkeypatch, capsys):
    """Run the command; give its exit code and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "benchmarks/compare.py"), run_name="__main__")
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return run


def test_noise_is_not_slower_and_a_slower_step_is(compare):
    generator = random.Random(0)
    wrong, found, faster = 0, 0, 0
    for _ in range(500):
        kept = rounds(generator)
        wrong += compare.verdict(kept, rounds(generator), 0.05) != "as before"
        found += compare.verdict(kept, rounds(generator, 0.4 * 1.15), 0.05) == "slower"
        faster += compare.verdict(kept, rounds(generator, 0.4 / 1.15), 0.05) == "faster"
    assert wrong == 0
    assert min(found, faster) > 490


def test_what_spreads_widely_is_not_slower_by_its_median_alone(compare):
    kept = [0.3, 0.35, 0.4, 0.6, 0.7]
    assert compare.verdict(kept, [0.3, 0.35, 0.5, 0.6, 0.7], 0.05) == "as before"
    assert compare.verdict(kept, [0.61, 0.62, 0.63, 0.64, 0.65], 0.05) == "slower"


def test_a_small_change_that_is_certain_is_within_the_tolerance(compare):
    kept, new = [0.400, 0.401, 0.402, 0.403], [0.410, 0.411, 0.412, 0.413]
    assert compare.verdict(kept, new, 0.05) == "as before"
    assert compare.verdict(kept, new, 0.02) == "slower"


def test_few_rounds_count_from_a_quarter_on(compare):
    assert compare.verdict([1.0], [1.2], 0.05) == "as before"
    assert compare.verdict([1.0], [1.3], 0.05) == "slower"
    assert compare.verdict([1.0, 1.1, 1.4], [1.3, 1.5, 1.6], 0.05) == "as before"
    assert compare.verdict([1.3], [1.0] * 11, 0.05) == "faster"


def test_the_command_says_each_ratio_in_a_line_and_exits_with_one_for_a_slower(tmp_path, run):
    generator = random.Random(1)
    ratios = {"step / Pyro": rounds(generator), "step / products": rounds(generator, 1.3), "step / NumPyro": [1.0] * 4}
    kept = written(tmp_path / "kept.json", ratios)
    assert run(kept, kept)[0] == 0
    changed = {"step / Pyro": [2 * ratio for ratio in ratios["step / Pyro"]], "step / products": [0.5] * 4, "new": [1]}
    code, out, err = run(kept, written(tmp_path / "new.json", changed, packages={"torch": "3"}, processor="two"))
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[:2] == ["differs: processor: one, now two", "differs: torch: 2.13, now 3"]
    old = statistics.median(ratios["step / Pyro"])
    assert lines[2] == f"step / Pyro: {old:.3g}, now {2 * old:.3g} (+100%), slower"
    assert lines[3].endswith("%), faster")
    assert lines[4:] == ["step / NumPyro: not measured now", "1 slower, 1 faster, 0 as before"]
    assert run(kept, tmp_path / "new.json", "--tolerance", "1.5")[0] == 0


RATIOS = {"step / Pyro": [0.4] * 4}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "expected what --json of a benchmark writes"),
        (b'{"environment": {}}', "expected what --json of a benchmark writes"),
        ({"ratios": {}}, "this benchmark has no ratios of one side to another"),
        ({"ratios": RATIOS, "quick": True}, "got those of --quick"),
        ({"ratios": {"other": [1.0]}}, "expected ratios such as 'step / Pyro'"),
        *(
            ({"ratios": {"a": bad}}, "expected positive numbers as rounds of 'a'")
            for bad in ([], 1.0, [0.0], [-1.0], [float("nan")], [float("inf")], ["1"], [True], [None])
        ),
        ({"ratios": RATIOS, "threads": 2}, "expected figures of threads 1, as they are kept, got threads 2"),
        ({"ratios": RATIOS, "clock": "processor"}, "expected figures of clock wall"),
        ({"ratios": RATIOS, "device": "cuda"}, "expected figures of device cpu"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(tmp_path, run, content, said):
    kept, new = written(tmp_path / "kept.json", RATIOS), tmp_path / "new.json"
    if isinstance(content, bytes):
        new.write_bytes(content)
    elif content is not None:
        written(new, content.pop("ratios"), **content)
    code, out, err = run(kept, new)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_tolerance_is_a_number_from_zero_on(tmp_path, run):
    kept = written(tmp_path / "kept.json", RATIOS)
    for tolerance in ("-1", "nan", "inf"):
        assert run(kept, kept, "--tolerance", tolerance)[0] == 2


def test_benchmarks_write_what_is_compared(tmp_path, monkeypatch, run, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import _measure

    times = _measure.Times({"ours": [1.0, 3.0], "theirs": [2.0, 2.0], "also ours": [1.0, 1.0]})
    ratios = times.against(["ours", "theirs"], ["theirs", "absent"], "a setting")
    assert ratios == {"a setting: ours / theirs": [0.5, 1.5]}
    assert times.ratio("ours", "theirs") == 1.0
    environment = _measure.surroundings(1, _measure.torch.device("cpu"))
    assert environment["platform"] in ("Linux", "Darwin", "Windows")
    for quick in (False, True):
        path = tmp_path / f"{quick}/step.json"
        _measure.write_json(path, {"environment": environment}, ratios, quick=quick)
        capsys.readouterr()
        assert run(path, path)[0] == (2 if quick else 0)


def test_kept_figures_were_measured_at_a_commit(compare, capsys):
    for path in KEPT.glob("*.json"):
        content = json.loads(path.read_bytes())
        assert (ROOT / "benchmarks" / f"{path.stem.split('-')[0]}.py").is_file()
        assert not content["quick"]
        assert content["environment"]["git"]["dirty"] is False
        assert "-" not in content["environment"]["platform"]
        if content["ratios"]:
            assert not compare.main(compare.Flags(path, path))
    capsys.readouterr()


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("tables")


def test_pages_show_the_kept_figures(tables):
    for path, text in tables.pages().items():
        assert path.read_text() == text, "python benchmarks/tables.py writes them"


def test_an_aim_that_is_missed_is_said(tables):
    assert [tables.of_aim(1.3, aim) for aim in (None, 1.3, 1.2)] == [
        "1.30",
        "1.30 (aim 1.3)",
        "1.30 (aim 1.2, not met)",
    ]


def test_the_kept_figures_draw_the_gap_of_ais(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    curves = json.loads((KEPT / "ais.json").read_bytes())["curves"]
    importlib.import_module("ais").draw_curves(curves, tmp_path / "ais_gap.png")
    assert compare_images(str(ROOT / "images/ais_gap.png"), str(tmp_path / "ais_gap.png"), tol=5) is None
