"""``report``: pages about made-up runs of several kinds, kept runs, hostile ones, and several side by side."""

import made_runs
import pytest
from strict_html import read_strictly

from amortized_bayes.cli import main
from amortized_bayes.experiments import gaps, sweep
from amortized_bayes.page.rendering import render
from amortized_bayes.presenting.badges import badges
from amortized_bayes.presenting.classes import class_name
from amortized_bayes.presenting.run_page import run_page
from amortized_bayes.results import RunFolder

ATTACK = "<script>alert(1)</script>"


def shown(*folders):
    """What the page of some runs says, after the strict checks."""
    return " ".join("".join(read_strictly(render(run_page(folders))).texts).split())


def judged(folder):
    return {badge.text: badge.more for badge in badges(folder, folder.rows())}


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without figures, which take most of the time."""
    for module in (sweep, gaps):
        monkeypatch.setattr(module, "FIGURES", {})


@pytest.mark.slow
def test_a_diagnosis_has_every_section(tmp_path):
    text = shown(made_runs.diagnosis().save(tmp_path))
    for wanted in (
        "✓ certified",
        "widen the encoder",
        "ankle boot",  # classes by name
        "The ladder of bounds",
        "bounds meet",
        "How many points lose how much",
        "k-hat",
        "Gaps by class",
        "The 10 points with the largest inference gap of train points",
        "largest gap reconstruction",
        "Some of the data",
        "python run_experiments.py gaps",
        "checksums of the run's files",
    ):
        assert wanted in text, wanted


@pytest.mark.usefixtures("undrawn")
def test_the_hardest_points_are_those_with_the_largest_gaps(tmp_path):
    folder = made_runs.diagnosis().save(tmp_path)
    arrays = folder.load_arrays(next(key for key in folder.done() if key.endswith("train")))
    worst = arrays["inference_gap"].argmax()
    name = class_name("fashion-mnist", arrays["labels"][worst])
    assert f"{arrays['places'][worst]} {name} {arrays['elbo'][worst]:.2f}" in shown(folder)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"certified": "test points"}),
        ({"certified": 0.0}, {"not certified": "test points"}),
        ({"converged": 0.0}, {"certified": "", "not converged": "q*"}),
        ({"note": "no verdict: k-hat is high"}, {"certified": "", "no verdict": ""}),
    ],
)
def test_badges_of_a_diagnosis(given, expected, tmp_path):
    found = judged(made_runs.diagnosis(**given).save(tmp_path))
    assert list(found) == list(expected)
    assert all(words in found[text] for text, words in expected.items())


def test_only_fits_that_need_not_be_are_called_vacuous(tmp_path):
    dead = made_runs.sweep(("mnist",), widths=(1, 64), vacuous=(("amortized", 1),)).save(tmp_path)
    assert judged(dead)["vacuous"] == "A-VI, k = 1"  # and not constant VI, which has no latent of a point's own


@pytest.mark.slow
def test_a_sweep_without_arrays_says_what_is_missing(tmp_path, monkeypatch):
    names = ("{dataset}_elbo", "{dataset}_points", "family_gap")
    monkeypatch.setattr(sweep, "FIGURES", {name: sweep.FIGURES[name] for name in names})
    folder = made_runs.sweep(("mnist",), widths=(1, 64)).save(tmp_path)
    assert "vacuous" not in judged(folder)
    assert "certified" not in judged(folder)
    for path in (folder.path / "arrays").glob("*.npz"):
        path.unlink()
    with pytest.raises(ValueError, match="is damaged: "):
        run_page([folder])
    folder.repair()
    text = shown(folder)
    for wanted in (
        "nats per point behind the reference",
        "family gap",
        "closes the gap for k ≥ 64",
        "kept without arrays",
        "images of the data: this run kept none",
        "Published claims",
    ):
        assert wanted in text, wanted


@pytest.mark.usefixtures("undrawn")
def test_claims_are_those_about_the_data(tmp_path):
    made = made_runs.Made("sweep")
    made.job({"dataset": "digits", "seed": 0}, made_runs.plain(final_elbo=-90.0))
    assert "Published claims" not in shown(made.save(tmp_path))


def a_small_run(out):
    made = made_runs.Made("sweep")
    made.job({"dataset": "mnist", "seed": 0}, made_runs.plain(final_elbo=-90.0))
    return made.save(out)


@pytest.mark.usefixtures("undrawn")
def test_runs_stand_side_by_side_with_what_differs(tmp_path):
    one = a_small_run(tmp_path)
    other = RunFolder.create(tmp_path, "sweep", {"seed": 1}, {}, "other")
    text = shown(one, other)
    assert "2 runs side by side" in text
    assert "Settings and facts in which the runs differ" in text
    assert "? unfinished" in text
    assert "? no rows yet" in text
    assert "published claims: its rows have no 'guide'" in text


def test_a_hostile_run_is_only_shown(tmp_path):
    made = made_runs.Made("sweep")
    made.job({"dataset": ATTACK, "seed": 0, "guide": ATTACK, "k": 1}, [("final_elbo", -9.0, {}, {"note": ATTACK})])
    about = {
        "command": f"sweep; rm -rf / {ATTACK}",
        "platform": ATTACK,
        "git": {"commit": ATTACK},
        "data": {ATTACK: {ATTACK: ATTACK}},
    }
    folder = made.save(tmp_path, **about)
    folder = RunFolder.open(folder.path.rename(folder.path.with_name("<script>alert(1)<script>")))
    text = shown(folder, folder)
    assert "sweep/<script>alert(1)<script>" in text
    assert "sweep ';' rm" not in text
    assert "'sweep;' rm" in text


@pytest.mark.parametrize("about", [{"part_of": "gaps/x"}, {"command": "--config"}])
@pytest.mark.usefixtures("undrawn")
def test_a_run_that_was_never_typed_is_made_again_from_its_settings(tmp_path, about):
    folder = made_runs.train().save(tmp_path / "my runs", device="cpu", threads=1, **about)
    config = folder.path / "config.yaml"
    expected = f"OMP_NUM_THREADS=1 python run_experiments.py train --config '{config}' --device cpu"
    assert expected in shown(folder)


@pytest.fixture
def call(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        return stopped.value.code, capsys.readouterr()

    return run


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_one_file(tmp_path, call):
    folder = a_small_run(tmp_path / "results")
    code, said = call("report", str(folder.path))
    assert (code, said.out.split()) == (0, [str(folder.path / "report.html")])
    first = (folder.path / "report.html").read_bytes()
    assert call("report", "latest", "--out", str(tmp_path / "results"))[0] == 0
    assert (folder.path / "report.html").read_bytes() == first
    into = tmp_path / "both.html"
    assert call("report", str(folder.path), str(folder.path), "--into", str(into))[0] == 0
    assert "2 runs side by side" in into.read_text("utf-8")
    assert not folder.verify()


@pytest.mark.usefixtures("undrawn")
def test_rows_of_no_such_run_are_a_line_for_each_thing_that_they_do_not_give(tmp_path, call):
    folder = a_small_run(tmp_path / "results")  # a sweep whose rows name no guide
    for command in ("table", "report"):
        code, said = call(command, str(folder.path))
        assert (code, said.err) == (0, "")
    assert "published claims cannot be compared: its rows have no 'guide'" in call("table", str(folder.path))[1].out


def test_what_is_no_run_is_one_line(tmp_path, call):
    for arguments, line in (
        (("report", "nothing", "--out", str(tmp_path)), "error: expected a run under"),
        (("report", "--into", str(tmp_path)), "error: expected a file as --into"),
    ):
        code, said = call(*arguments)
        assert (code, said.err.count("\n")) == (2, 1)
        assert said.err.startswith(line)
