"""``gaps`` and ``qstar``: what they measure and keep, how they go on, and one line for a checkpoint that is none."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from amortized_bayes.commands.stages import StageProgress
from amortized_bayes.commands.tables import print_run
from amortized_bayes.experiments.gap_study import GAPS, GapsConfig, class_rows, run_gaps
from amortized_bayes.experiments.qstar_study import QStarConfig, Search, run_qstar, searches

from amortized_bayes import cli
from amortized_bayes.configuration import to_mapping
from amortized_bayes.diagnosis import Diagnosis
from amortized_bayes.experiments import gap_study, qstar_study
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.trained import load_trained
from amortized_bayes.experiments.training import train
from amortized_bayes.results import RunFolder, list_runs
from amortized_bayes.results.checkpoints import save_tensors

CPU = torch.device("cpu")
TINY = VAEConfig(
    dataset="digits",
    encoder="small",
    latent_dim=3,
    hidden=(16,),
    epochs=20,
    batch_size=50,
    learning_rate=1e-2,
    num_train=200,
    num_test=50,
)
GAPS_TINY = GapsConfig(
    points=16,
    particles=50,
    restarts=2,
    local_steps=10,
    chains=2,
    temperatures=2,
    max_temperatures=2,
    leapfrog=1,
    simulated=2,
)
QSTAR_TINY = QStarConfig(
    points=6,
    restarts=2,
    spreads=(0.5, 2.0),
    budgets=(10, 20),
    samples=4,
    reference_steps=40,
    reference_samples=4,
    score=50,
)


def train_model(out, config=TINY, name="model"):
    folder = RunFolder.create(out, "train", to_mapping(config), {"device": "cpu"}, name)
    with folder:
        list(train(config, folder, device=CPU))
        folder.finish()
    return folder


def study(out, config, model, name="study", watch=lambda *_: None, experiment="gaps"):
    """Run a study of a model to its end."""
    folder = RunFolder.create(out, experiment, to_mapping(config), {"device": "cpu"}, name)
    return folder, go_on(folder, config, model, watch)


def go_on(folder, config, model, watch=lambda *_: None):
    run = run_gaps if isinstance(config, GapsConfig) else run_qstar
    with folder:
        rows = list(run(config, model, folder, watch=watch))
        folder.finish()
    return rows


def arguments(config):
    """The flags of a setting."""
    found = []
    for name, value in to_mapping(config).items():
        if name not in ("checkpoint", "preset"):
            flag = f"--{name.replace('_', '-')}"
            found += [flag, *map(str, value if isinstance(value, list | tuple) else [value])]
    return [*found, "--device", "cpu"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with one trained model in it; tests take copies of it."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("trained")
    train_model(out)
    return out


@pytest.fixture(scope="module")
def model(results):
    return load_trained(RunFolder.open(results / "train" / "model"), device=CPU)


@pytest.fixture(scope="module")
def gaps_run(model, tmp_path_factory):
    return study(tmp_path_factory.mktemp("gaps"), GAPS_TINY, model)


@pytest.fixture(scope="module")
def qstar_run(model, tmp_path_factory):
    return study(tmp_path_factory.mktemp("qstar"), QSTAR_TINY, model, experiment="qstar")


@pytest.fixture
def place(tmp_path, monkeypatch, results):
    """An empty folder with a copy of the trained model in ``results``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AMORTIZED_BAYES_DATA", raising=False)
    shutil.copytree(results, tmp_path / "results")
    return tmp_path


def call(*given):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in given])
    return stop.value.code or 0


@pytest.fixture
def refused(capsys):
    """Call a command and return the one line that says what is wrong."""

    def of(*given):
        assert call(*given) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1, said
        return said

    return of


def values(rows):
    """Numbers of rows by what they are, without times."""
    return {(r.guide, r.step, r.metric): (r.value, r.standard_error, r.note) for r in rows}


# Gaps -----------------------------------------------------------------------------------------------------------------


def test_rows_arrays_and_reports_of_gaps_agree(gaps_run, model):
    folder, rows = gaps_run
    frame = folder.rows()
    assert len(frame) == len(rows)
    assert set(frame["experiment"]) == {"gaps"}
    assert folder.done() == {"train", "test"}
    assert folder.verify() == []
    for split, images in (("train", model.data.train), ("test", model.data.test)):
        arrays = folder.load_arrays(split)
        places = arrays["places"]
        assert len(places) == len(np.unique(places)) == 16
        assert places.max() < len(images)
        report = Diagnosis.load(folder.path / f"diagnosis_{split}.safetensors")
        assert report.num_points == 16
        points = report.to_frame()
        points = points[points["kind"] == "real"]
        for name in (*GAPS, "elbo", "elbo_star", "iwae", "log_p_lower", "k_hat", "elbo_error"):
            np.testing.assert_allclose(arrays[name], points[name], err_msg=name)
        np.testing.assert_allclose(
            arrays["inference_gap"], arrays["approximation_gap"] + arrays["amortization_gap"], atol=1e-5
        )
        np.testing.assert_allclose(arrays["amortization_gap"], arrays["elbo_star"] - arrays["elbo"], atol=1e-5)
        for name in (*GAPS, "elbo", "elbo_star"):
            row = frame[frame["metric"] == f"{split}_{name}"].iloc[0]
            assert row["value"] == pytest.approx(arrays[name].mean(), abs=1e-5)
            assert row["standard_error"] == pytest.approx(arrays[name].std(ddof=1) / 4, rel=1e-4)
            assert row["error_over"] == "points"
        by_metric = frame.set_index("metric")["value"]
        assert by_metric[f"{split}_doubtful"] == pytest.approx(report.doubtful)
        note = frame[frame["metric"] == f"{split}_inference_gap"]["note"].item()
        assert note == report.verdict.words != ""


def test_points_are_those_that_were_diagnosed(gaps_run, model):
    """The ELBO in the arrays belongs to the images at the places beside it."""
    folder, _ = gaps_run
    from amortized_bayes.evaluation.bounds import elbo

    for split, images in (("train", model.data.train), ("test", model.data.test)):
        arrays = folder.load_arrays(split)
        x = images[torch.from_numpy(arrays["places"])].float()
        again = elbo(model.model, model.guide, x, num_draws=2_000)
        error = np.hypot(arrays["elbo_error"], again.standard_error.numpy())
        assert (np.abs(arrays["elbo"] - again.value.numpy()) / error).max() < 5
        assert (np.abs(arrays["elbo"] - again.value.flip(0).numpy()) / error).max() > 10
        labels = (model.data.source.train if split == "train" else model.data.source.test).labels
        np.testing.assert_array_equal(arrays["labels"], labels[arrays["places"]])


def test_class_rows_are_means_by_hand(gaps_run):
    folder, rows = gaps_run
    frame = pd.DataFrame(rows)
    seen = 0
    for split in ("train", "test"):
        arrays = folder.load_arrays(split)
        labels, counts = np.unique(arrays["labels"], return_counts=True)
        of_classes = frame[frame["metric"].str.match(f"^{split}_class")]
        assert len(of_classes) == 3 * (counts > 1).sum()
        for label in labels[counts > 1]:
            for name in GAPS:
                here = [float(v) for v, c in zip(arrays[name], arrays["labels"], strict=True) if c == label]
                mean = sum(here) / len(here)
                variance = sum((v - mean) ** 2 for v in here) / (len(here) - 1)
                row = frame[frame["metric"] == f"{split}_class{label}_{name}"].iloc[0]
                assert row["value"] == pytest.approx(mean)
                assert row["standard_error"] == pytest.approx((variance / len(here)) ** 0.5)
                seen += 1
    assert seen >= 12


def test_class_rows_without_labels_and_of_single_points():
    arrays = {name: np.array([1.0, 3.0, 7.0]) for name in GAPS}
    assert class_rows(arrays, None) == {}
    found = class_rows(arrays, np.array([4, 4, 2], dtype=np.uint8))
    assert found == {4: dict.fromkeys(GAPS, (2.0, 1.0))}


def test_gaps_go_on_with_the_split_that_is_left(tmp_path, model, gaps_run, monkeypatch):
    whole, rows = gaps_run

    def stop(stage, done, total):
        if stage.startswith("test"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, GAPS_TINY, model, watch=stop)
    folder = RunFolder.open(tmp_path / "gaps" / "study")
    assert folder.done() == {"train"}
    kept = (folder.path / "rows.jsonl").read_bytes()
    before = (folder.path / "diagnosis_train.safetensors").read_bytes()
    looked_at = []
    diagnose = gap_study._diagnose
    monkeypatch.setattr(gap_study, "_diagnose", lambda *a: looked_at.append(a[2]) or diagnose(*a))
    again = go_on(folder, GAPS_TINY, model)
    assert looked_at == ["test"]
    assert (folder.path / "rows.jsonl").read_bytes().startswith(kept)
    assert (folder.path / "diagnosis_train.safetensors").read_bytes() == before
    assert values(again) == {k: v for k, v in values(rows).items() if k[2].startswith("test")}
    pd.testing.assert_frame_equal(folder.rows(), whole.rows())


def test_other_seeds_look_at_other_points_and_splits_can_be_chosen(tmp_path, model, gaps_run):
    config = GapsConfig(**{**to_mapping(GAPS_TINY), "splits": ("test",), "points": 1_000, "seed": 1, "simulated": 2})
    folder, rows = study(tmp_path, config, model)
    assert {r.metric.split("_")[0] for r in rows} == {"test"}
    assert len(folder.load_arrays("test")["places"]) == 50  # all that there are
    few = GapsConfig(**{**to_mapping(GAPS_TINY), "splits": ("test",), "seed": 1})
    other, _ = study(tmp_path, few, model, "few")
    assert set(other.load_arrays("test")["places"]) != set(gaps_run[0].load_arrays("test")["places"])


# Q* -------------------------------------------------------------------------------------------------------------------


def test_all_searches_are_done_and_kept(qstar_run):
    folder, rows = qstar_run
    keys = {f"{s}_spread{p}_steps{n}" for s in ("encoder", "prior") for p in ("0.5", "2") for n in (10, 20)}
    assert {s.key for s in searches(QSTAR_TINY)} == keys
    assert folder.done() == {*keys, "reference_spread0_steps40"}
    for key in keys:
        arrays = folder.load_arrays(key)
        for name in ("elbo_star", "error", "residual", "residual_error", "evaluations"):
            assert arrays[name].shape == (2, 6), (key, name)
            assert np.isfinite(arrays[name]).all()
        assert not np.array_equal(arrays["elbo_star"][0], arrays["elbo_star"][1])
    assert folder.load_arrays("reference_spread0_steps40")["elbo_star"].shape == (1, 6)
    places = folder.load_arrays("reference_spread0_steps40")["places"]
    assert all(np.array_equal(folder.load_arrays(k)["places"], places) for k in keys)
    assert folder.verify() == []
    assert {(r.guide, r.step) for r in rows} == {
        ("reference", 40),
        *((s, n) for s in ("encoder", "prior") for n in (10, 20)),
    }


def test_rows_of_searches_are_means_by_hand(qstar_run):
    folder, rows = qstar_run
    reference = folder.load_arrays("reference_spread0_steps40")["elbo_star"][0]
    found = {(r.guide, r.step, r.metric): r for r in rows}
    assert not any(r.metric.endswith("behind_reference") for r in rows if r.guide == "reference")
    for search in searches(QSTAR_TINY):
        arrays = folder.load_arrays(search.key)

        def row(metric, search=search):
            return found[search.start, search.steps, f"spread{search.spread:g}_{metric}"]

        behind = [
            sum(float(reference[b] - arrays["elbo_star"][r, b]) for r in range(2)) / 2 for b in range(len(reference))
        ]
        mean = sum(behind) / 6
        error = (sum((v - mean) ** 2 for v in behind) / 5 / 6) ** 0.5
        assert row("behind_reference").value == pytest.approx(reference.mean() - arrays["elbo_star"].mean(), abs=1e-9)
        assert row("behind_reference").value == pytest.approx(mean)
        assert row("behind_reference").standard_error == pytest.approx(error)
        for metric in ("elbo_star", "residual", "evaluations"):
            assert row(metric).value == pytest.approx(arrays[metric].mean())
        apart = arrays["elbo_star"][0] - arrays["elbo_star"][1]
        variance = (apart**2 / 2 - (arrays["error"] ** 2).mean(0)).mean()
        assert row("restart_variance").value == pytest.approx(variance)


def test_a_better_search_is_less_far_behind(tmp_path, model):
    """Started at the encoder's answer with many steps, a search finds what the reference found."""
    changes = {"points": 12, "spreads": (0.5,), "starts": ("encoder",), "budgets": (10, 400), "samples": 10}
    changes |= {"reference_steps": 1_000, "reference_samples": 10, "score": 1_000}
    _, rows = study(tmp_path, QStarConfig(**changes, restarts=2), model, experiment="qstar")
    behind = {r.step: r for r in rows if r.metric.endswith("behind_reference")}
    assert abs(behind[400].value) < 0.1
    assert behind[10].value - behind[400].value > 3 * behind[10].standard_error


def test_qstar_goes_on_with_the_searches_that_are_left(tmp_path, model, qstar_run, monkeypatch):
    whole, rows = qstar_run

    def stop(stage, done, total):
        if stage.startswith("4/9"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, QSTAR_TINY, model, watch=stop, experiment="qstar")
    folder = RunFolder.open(tmp_path / "qstar" / "study")
    done = folder.done()
    assert len(done) == 3
    kept = (folder.path / "rows.jsonl").read_bytes()
    for command in ("plot", "table"):  # what is there can be looked at
        assert call(command, "study", "--out", tmp_path) == 0
    looked_for = []
    search = qstar_study._search
    monkeypatch.setattr(qstar_study, "_search", lambda *a: looked_for.append(a[4].key) or search(*a))
    again = go_on(folder, QSTAR_TINY, model)
    assert len(looked_for) == 6
    assert not done & set(looked_for)
    assert (folder.path / "rows.jsonl").read_bytes().startswith(kept)
    assert values(again).items() <= values(rows).items()
    timed = ["seconds"]
    pd.testing.assert_frame_equal(folder.rows().drop(columns=timed), whole.rows().drop(columns=timed))


def test_keys_of_searches_differ_and_cheap_ones_come_first():
    config = QStarConfig(spreads=(0.0, 0.25, 1e-3, 2.0))
    found = searches(config)
    assert len({s.key for s in found}) == len(found) == 4 * 2 * 4
    assert [s.steps for s in found] == sorted(s.steps for s in found)
    assert Search("prior", 2.0, 30).key == "prior_spread2_steps30"


# The commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("gaps --preset nope", "expected --preset quick or paper, got 'nope'"),
        ("gaps --points 1", "expected --points of 2 or more, got 1"),
        ("gaps --particles 24", "expected --particles of 25 or more, got 24"),
        ("gaps --local-steps 9", "expected --local-steps of 10 or more, got 9"),
        ("gaps --chains 1", "expected --chains of 2 or more, got 1"),
        ("gaps --temperatures 0", "expected --temperatures of 1 or more, got 0"),
        ("gaps --target-gap 0", "expected --target-gap above 0, got 0.0"),
        ("gaps --target-gap nan", "expected --target-gap above 0, got nan"),
        ("gaps --splits", "expected --splits with different values, got []"),
        ("gaps --splits train train", "expected --splits with different values, got ['train', 'train']"),
        ("gaps --seed -1", "expected --seed of 0 or more, got -1"),
        ("gaps --resume nope", "got 'nope': no such run"),
        ("qstar --preset nope", "expected --preset quick or paper, got 'nope'"),
        ("qstar --restarts 1", "expected --restarts of 2 or more, got 1"),
        ("qstar --samples 5", "expected an even --samples, since draws come in pairs, got 5"),
        ("qstar --reference-samples 7", "expected an even --reference-samples"),
        ("qstar --budgets 5 100", "expected --budgets of 10 or more, got [5, 100]"),
        ("qstar --budgets 10 10", "expected --budgets with one or more different values, got [10, 10]"),
        ("qstar --spreads -1", "expected --spreads of 0 or more, got [-1.0]"),
        ("qstar --starts", "expected --starts with one or more different values, got []"),
        ("qstar --config none.yaml", "cannot read none.yaml: No such file or directory"),
    ],
)
def test_bad_flags_are_one_line(place, refused, arguments, message):
    before = files(place / "results")
    assert message in refused(*arguments.split())
    assert files(place / "results") == before


@pytest.mark.parametrize("arguments", ["gaps --splits validation", "qstar --starts guide", "qstar --split both"])
def test_words_that_are_no_choice(place, capsys, arguments):
    assert call(*arguments.split()) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said


def files(folder):
    """Every file below, with its content."""
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def spoil(run, how):
    """Damage a trained model on disk."""
    checkpoints = run / "checkpoints"
    if how == "truncated":
        for path in checkpoints.glob("model*.safetensors"):
            path.write_bytes(path.read_bytes()[:-100])
    elif how == "empty":
        (checkpoints / "model.safetensors").write_bytes(b"")
    elif how == "lost":
        for path in checkpoints.glob("model*"):
            path.unlink()
    elif how == "architecture":
        path = run / "config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"latent_dim": 4}))
    elif how == "decoder":
        path = run / "config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"decoder": "bayesian"}))
    elif how == "config":
        (run / "config.yaml").write_text("latent_dim: many\n")
    elif how == "nan":
        tensors = RunFolder.open(run).load_tensors("model")
        tensors["model.network.0.weight"] = np.full_like(tensors["model.network.0.weight"], np.nan)
        for _ in range(2):  # both generations
            save_tensors(run, "model", tensors)
    elif how == "unfinished":
        shutil.rmtree(checkpoints)
        (run / "FINISHED").unlink()
        (run / "done.jsonl").write_text("")


@pytest.mark.parametrize("command", ["gaps", "qstar"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "model.safetensors"),
        ("empty", "model.safetensors"),
        ("lost", "holds no 'model'"),
        ("architecture", "expected a checkpoint of the architecture in its config.yaml, with model.network.0.weight"),
        ("decoder", "expected a checkpoint of the architecture in its config.yaml, with "),
        ("config", "latent_dim: expected int"),
        ("nan", "expected finite weights, got nan or inf in model.network.0.weight"),
        ("unfinished", "holds no 'model'"),
    ],
)
def test_a_checkpoint_that_is_none_is_one_line_and_nothing_is_lost(place, refused, command, how, message):
    run = place / "results" / "train" / "model"
    spoil(run, how)
    before = files(place / "results")
    assert message in refused(command, "model", "--device", "cpu")
    assert files(place / "results") == before


@pytest.mark.parametrize("command", ["gaps", "qstar"])
def test_a_checkpoint_that_is_no_model_of_ours(place, refused, command):
    RunFolder.create(place / "results", "sweep", {}, {}, "other")
    before = files(place / "results")
    said = refused(command, "other", "--device", "cpu")
    assert "expected a run of `train` as checkpoint, got" in said
    assert "a run of sweep" in said
    assert "got 'nope': no such run" in refused(command, "nope", "--device", "cpu")
    (place / "empty").mkdir()
    refused(command, "empty", "--device", "cpu")
    assert "train one first" in refused(command, "--out", "empty", "--device", "cpu")
    assert files(place / "results") == before
    assert not any((place / "empty").iterdir())


def test_an_older_generation_serves_where_the_last_is_damaged(place, model, recwarn):
    run = place / "results" / "train" / "model"
    tensors = RunFolder.open(run).load_tensors("model")
    save_tensors(run, "model", {name: value + 1 for name, value in tensors.items()})
    (run / "checkpoints" / "model.safetensors").write_bytes(b"torn")
    loaded = load_trained(RunFolder.open(run), device=CPU)
    assert torch.equal(next(loaded.guide.parameters()), next(model.guide.parameters()))
    assert any("model" in str(w.message) for w in recwarn)


def test_data_of_another_size_than_trained_on(place, refused):
    generator = np.random.default_rng(0)
    arrays = {k: generator.integers(0, 2, (n, 5, 5), dtype=np.uint8) for k, n in (("train", 240), ("test", 40))}
    np.savez("mine.npz", **arrays)
    flags = ("--dataset", "mine.npz", "--epochs", "1", "--hidden", "4", "--latent-dim", "2", "--num-train", "200")
    assert call("train", *flags, "--batch-size", "50", "--encoder", "small", "--device", "cpu") == 0
    np.savez("mine.npz", **{k: v[:, :4] for k, v in arrays.items()})
    before = files(place / "results")
    said = refused("gaps", "--device", "cpu")  # the latest
    assert "got other files of mine.npz" in said
    (place / "mine.npz").unlink()
    assert "no such file" in refused("gaps", "--device", "cpu")
    assert files(place / "results") == before


def test_other_data_of_the_same_size(place):
    """Training points that the model was not trained on would give a wrong gap without a word."""
    generator = np.random.default_rng(0)
    flags = ("--dataset", "mine.npz", "--epochs", "1", "--hidden", "4", "--latent-dim", "2", "--num-train", "200")
    for _ in range(2):
        np.savez("mine.npz", train=generator.integers(0, 2, (240, 25), dtype=np.uint8))
        if not (place / "own").exists():
            assert call("train", *flags, "--batch-size", "50", "--device", "cpu", "--out", "own") == 0
    few = ["--splits", "train", "--points", "4", "--restarts", "1"]
    assert call("gaps", *arguments(GAPS_TINY), *few, "--out", "own") == 2


def test_latest_is_a_model_that_was_trained(place):
    failed = RunFolder.create(place / "results", "train", to_mapping(TINY), {}, "failed")
    with failed:
        failed.mark_done("model")
        failed.finish()
    given = ["gaps", *arguments(GAPS_TINY), "--splits", "test", "--points", "4"]
    assert call(*given) == 0


def test_gaps_from_start_to_figures(place, capsys):
    assert call("gaps", "model", *arguments(GAPS_TINY)) == 0
    said = capsys.readouterr().out
    (info,) = (i for i in list_runs(place / "results") if i.experiment == "gaps")
    assert info.status == "finished"
    for words in ("amortization gap", "approximation gap", "by class, train", "by class, test", "inference_gap:"):
        assert words in said
    for name in ("gaps", "gaps_by_class"):
        for ending in ("png", "pdf"):
            assert (info.path / f"{name}.{ending}").stat().st_size > 2_000
    folder = RunFolder.open(info.path)
    assert folder.verify() == []
    config = yaml.safe_load((info.path / "config.yaml").read_text())
    assert config["checkpoint"] == str(place / "results" / "train" / "model")
    environment = json.loads((info.path / "environment.json").read_text())
    assert set(environment) >= {"packages", "device", "command"}
    mean = folder.rows().set_index("metric")["value"]["train_inference_gap"]
    assert f"amortized  train_inference_gap: {mean:.3f} nats" in said
    assert call("table", info.name) == 0
    assert f"{mean:.2f}" in capsys.readouterr().out
    assert call("plot", info.name, "--into", "again") == 0
    for name in ("gaps", "gaps_by_class"):
        assert (place / "again" / f"{name}.png").read_bytes() == (info.path / f"{name}.png").read_bytes()


def test_qstar_from_an_interruption_to_figures(place, capsys, monkeypatch, refused):
    def stop(self, stage, done, total, state=""):
        if stage.startswith("3/9"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageProgress, "__call__", stop)
        assert call("qstar", *arguments(QSTAR_TINY)) == 130  # of the latest
    (info,) = (i for i in list_runs(place / "results") if i.experiment == "qstar")
    assert (info.status, info.num_fits) == ("unfinished", 2)
    assert f"qstar --resume results/qstar/{info.name}" in capsys.readouterr().err
    assert "expected an unfinished run of gaps to resume" in refused("gaps", "--resume", info.name, "--device", "cpu")
    assert call("qstar", "--resume", info.name, "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert "behind reference" in said
    assert said.count("│ encoder") == said.count("│ prior") == 4
    for ending in ("png", "pdf"):
        assert (info.path / f"qstar.{ending}").stat().st_size > 2_000
    assert "expected an unfinished run of qstar" in refused("qstar", "--resume", info.name, "--device", "cpu")


def test_a_model_whose_weights_are_random_is_diagnosed_too(tmp_path, capsys):
    config = VAEConfig(**{**to_mapping(TINY), "decoder": "bayesian", "epochs": 1, "hidden": (4,)})
    found = load_trained(train_model(tmp_path, config), device=CPU)
    few = {"points": 4, "shared_draws": 2, "splits": ("test",)}
    folder, rows = study(tmp_path, GapsConfig(**{**to_mapping(GAPS_TINY), **few}), found)
    assert {r.model for r in rows} == {"Bayesian decoder, small encoder"}
    assert Diagnosis.load(folder.path / "diagnosis_test.safetensors").num_shared == 2
    print_run(folder)
    assert "Bayesian decoder" in capsys.readouterr().out
    one = QStarConfig(**{**to_mapping(QSTAR_TINY), "spreads": (0.5,), "budgets": (10,), "starts": ("encoder",)})
    study(tmp_path, one, found, experiment="qstar")


@pytest.mark.parametrize(
    "command",
    [
        "plot",
        "table",
    ],
)
@pytest.mark.parametrize("experiment", ["train", "gaps", "qstar"])
def test_plot_and_table_of_a_run_that_holds_nothing_yet(tmp_path, command, experiment):
    setting = {"train": TINY, "gaps": GAPS_TINY, "qstar": QSTAR_TINY}[experiment]
    RunFolder.create(tmp_path, experiment, to_mapping(setting), {}, "nothing")
    assert call(command, "nothing", "--out", tmp_path) == 0
