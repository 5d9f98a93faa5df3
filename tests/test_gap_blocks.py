"""``gaps`` in blocks: jobs that any runner may carry out, in any order, and one report on all points together."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_executors import assert_same
from test_gaps_experiment import FEW
from wing import CPU, TINY, QuickLab, cut, go, one, only, resume, stop_at

from amortized_bayes.diagnosis import Diagnosis, diagnose_block
from amortized_bayes.diagnosis.estimates import guide_estimates
from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.experiments import bounds, experiment, gap_blocks, plans
from amortized_bayes.experiments.bounds import GAPS
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.presenting import present
from amortized_bayes.results import RunFolder, find_run
from amortized_bayes.seeding import torch_seed

BLOCKS = replace(FEW, splits=("test",), points=36, block_size=12)
"""Three blocks of twelve points."""


@pytest.fixture(scope="module")
def run(trained_results, tmp_path_factory):
    out = tmp_path_factory.mktemp("gaps") / "results"
    shutil.copytree(trained_results, out)
    return go("gaps", BLOCKS, out)


def keys(folder):
    """Keys of the certificate, the blocks, and all points together."""
    first, *blocks, last = folder.done()
    assert first.startswith("certificate+")
    assert all(key.startswith("estimates+") and key.endswith(f"block={n}") for n, key in enumerate(blocks))
    assert last.startswith("dataset=")
    return first, blocks, last


def listed(config, out):
    return [job.key for job in plans.new_plan("gaps", config, QuickLab(out, CPU), ["config"], {}).jobs]


def test_blocks_are_cut_only_where_there_are_many_points(results):
    assert len(listed(BLOCKS, results)) == 5
    assert len(listed(replace(BLOCKS, splits=("train", "test")), results)) == 10
    whole = listed(replace(BLOCKS, block_size=36), results)
    assert [key.partition("+")[0] for key in whole] == ["dataset=digits"]
    assert listed(replace(BLOCKS, points=1_000, block_size=50), results) == whole  # there are but 50
    assert len(listed(replace(BLOCKS, points=1_000, block_size=40), results)) == 4
    sizes = [len(part) for part in gap_blocks._cut(np.arange(50), replace(BLOCKS, block_size=12))]
    assert sizes == [10] * 5


@pytest.mark.slow
def test_the_split_has_all_points_of_its_blocks(run):
    _, blocks, last = keys(run)
    assert set(run.done().values()) == {"ok"}
    arrays = run.load_arrays(last)
    parts = [run.load_arrays(key) for key in blocks]
    assert [len(part["places"]) for part in parts] == [12, 12, 12]
    for name in ("places", "elbo", "elbo_star", "iwae", "log_p_lower", "elbo_error", "k_hat"):
        np.testing.assert_array_equal(arrays[name], np.concatenate([part[name].ravel() for part in parts]))
    assert len(np.unique(arrays["places"])) == 36
    assert (np.diff(arrays["places"]) > 0).all()
    report = Diagnosis.load(run.path / "diagnosis_test.safetensors")
    assert (report.num_points, report.settings["blocks"]) == (36, 3)
    rows = run.rows()
    assert set(rows["split"]) == {"test"}
    assert "block" not in rows or rows["block"].isna().all()
    for name in (*GAPS, "elbo", "elbo_star"):
        row = one(rows, name, label=None)
        assert row["value"] == pytest.approx(arrays[name].mean(), abs=1e-5)
        if name in ("elbo", "elbo_star", "amortization_gap"):  # others may rest on IWAE, whose errors may not be known
            assert row["standard_error"] == pytest.approx(arrays[name].std(ddof=1) / 6, rel=1e-4)
    assert one(rows, "inference_gap", label=None)["note"] == report.verdict.words != ""
    assert report.certificate is not None
    assert one(rows, "certificate_gap")["value"] == report.certificate.mean_gap
    assert len(only(rows, "inference_gap")) - 1 == (np.unique(arrays["labels"], return_counts=True)[1] > 1).sum()
    assert run.verify() == []


@pytest.mark.slow
def test_each_block_is_of_its_own_points_under_the_seed_of_its_key(run, results, monkeypatch):
    seeds, sizes = [], []
    measure, at = diagnose_block, bounds.images_at
    monkeypatch.setattr(
        gap_blocks, "diagnose_block", lambda *a, seed, **k: seeds.append(seed) or measure(*a, seed=seed, **k)
    )
    for module in (gap_blocks, bounds):
        monkeypatch.setattr(module, "images_at", lambda images, p: sizes.append(len(p)) or at(images, p))
    again = go("gaps", BLOCKS, results)
    _, blocks, last = keys(again)
    assert seeds == [torch_seed(0, key) for key in blocks]
    assert max(sizes) == 12  # nobody holds all images at once
    assert_same(run, again)
    model = Lab(results, CPU).checkpoint(find_run(results, "latest", "train"))
    arrays = again.load_arrays(last)
    x = model.data.test[torch.from_numpy(arrays["places"])].float()
    found = elbo(model.model, model.guide, x, num_draws=300)
    error = np.hypot(arrays["elbo_error"], found.standard_error.numpy())
    assert (np.abs(arrays["elbo"] - found.value.numpy()) / error).max() < 5
    pixels = model.data.test[int(arrays["places"][arrays["inference_gap"].argmax()])].reshape(8, 8)
    assert (arrays["picture_largest_gap"][0] == pixels.numpy()).all()


def test_blocks_and_one_batch_agree_within_their_errors(run, results):
    """Of the same points, with the same model: means that differ by the draws alone."""
    whole = go("gaps", replace(BLOCKS, block_size=36), results)
    (key,) = whole.done()
    one_batch, blocks = whole.load_arrays(key), run.load_arrays(keys(run)[-1])
    np.testing.assert_array_equal(one_batch["places"], blocks["places"])
    np.testing.assert_array_equal(one_batch["labels"], blocks["labels"])
    for name in ("elbo", "elbo_star"):
        error = np.hypot(one_batch[f"{name}_error"], blocks[f"{name}_error"])
        assert abs((one_batch[name] - blocks[name]).mean()) < 3 * np.sqrt((error**2).sum()) / 36, name
        assert (one_batch[name] != blocks[name]).all()


@pytest.mark.slow
def test_what_is_shown_is_that_of_all_points(run, capsys, tmp_path):
    folder = RunFolder.open(shutil.copytree(run.path, tmp_path / "gaps" / run.name))
    figures = {path.stem for path in present(experiment("gaps"), folder)}
    assert figures == {"gaps", "bounds", "ecdf", "difficulty", "extremes", "gaps_by_class"}
    printed = capsys.readouterr().out
    assert "block" not in printed
    assert "optimization gap" in printed


@pytest.mark.parametrize(("stage", "done"), [("test ais", 5), ("test q*", 24)])
@pytest.mark.slow
def test_a_block_that_is_killed_is_run_again_alone(run, results, monkeypatch, stage, done):
    folder = cut("gaps", BLOCKS, results, stop_at(stage, done, job="block 1"))
    first, blocks, _ = keys(run)
    assert list(folder.done()) == [first, blocks[0]]
    before = {key: (folder.path / "arrays" / f"{key}.npz").read_bytes() for key in blocks[:1]}
    measured = []
    measure = diagnose_block
    monkeypatch.setattr(
        gap_blocks, "diagnose_block", lambda *a, seed, **k: measured.append(seed) or measure(*a, seed=seed, **k)
    )
    monkeypatch.setattr(gap_blocks, "prepare_blocks", None)
    folder = resume("gaps", results)
    assert measured == [torch_seed(0, key) for key in blocks[1:]]
    assert all((folder.path / "arrays" / f"{key}.npz").read_bytes() == data for key, data in before.items())
    assert_same(folder, run)


@pytest.mark.slow
def test_a_block_that_fails_leaves_no_mean_of_the_others(results, monkeypatch):
    measure = diagnose_block

    def fail(*args, seed, **named):
        if seed == torch_seed(0, failing):
            raise ArithmeticError("planted")
        return measure(*args, seed=seed, **named)

    failing = listed(BLOCKS, results)[2]
    monkeypatch.setattr(gap_blocks, "diagnose_block", fail)
    folder = go("gaps", BLOCKS, results)
    last = keys(folder)[-1]
    assert folder.done() == {key: "failed" if key in (failing, last) else "ok" for key in folder.done()}
    rows = folder.rows()
    assert set(rows["metric"]) == {"failure"}
    assert sorted(rows["note"]) == sorted(["planted", f"{failing} failed"])


@pytest.mark.slow
def test_draws_of_a_bayesian_decoder_are_those_of_all_blocks(tmp_path):
    go("train", replace(TINY, decoder="bayesian", epochs=1, hidden=(4,)), tmp_path)
    config = replace(BLOCKS, points=20, block_size=10, shared_draws=2)
    folder = go("gaps", config, tmp_path)
    first, *blocks, _ = folder.done()
    assert len(blocks) == 2
    draws = folder.load_tensors(first)
    assert {name.split(".")[1] for name in draws if name.startswith("fixed.")} == {"0", "1"}
    assert Diagnosis.load(folder.path / "diagnosis_test.safetensors").num_shared == 2
    assert folder.load_arrays(blocks[0])["elbo"].shape == (2, 10)
    trained = Lab(tmp_path, CPU).checkpoint(find_run(tmp_path, "latest", "train"))
    weights = {name.removeprefix("fixed.1."): torch.from_numpy(v) for name, v in draws.items() if "fixed.1." in name}
    for key in blocks:  # log p(x|z) under that draw, as the guide's weights have it
        arrays = folder.load_arrays(key)
        x = trained.data.test[torch.from_numpy(arrays["places"])].float()
        joint = bounds.joint_density(trained.model, x, fixed=weights)
        value, spread = (part.numpy() for part in guide_estimates(joint, trained.guide, 200, seed=5)["elbo"])
        assert (np.abs(arrays["elbo"][1] - value) < 5 * np.hypot(arrays["elbo_error"][1], spread)).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--block-size", 9), "expected --block-size of 10 or more, got 9"),
        (("--block-size", -1), "expected --block-size of 10 or more, got -1"),
        (("--block-size", "all"), "block-size"),
        (
            ("--block-size", 10, "--points", 50),
            "of 25 or more for 50 points, in 2 blocks at most, got 10",
        ),
    ],
)
@pytest.mark.usefixtures("results")
def test_bad_sizes_are_one_line(refused, monkeypatch, given, words):
    monkeypatch.setattr(gap_blocks, "MOST_BLOCKS", 2)
    assert words in refused("gaps", "--splits", "test", *given)
