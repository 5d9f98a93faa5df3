"""``semantic-hashing`` from start to tables and figures."""

import math

import numpy as np
import pytest
import torch
import wing

from amortized_bayes.data import read_corpus
from amortized_bayes.experiments.hashing import own_code_length, splits_of
from amortized_bayes.experiments.hashing_settings import Config
from amortized_bayes.inference.svi import Training
from amortized_bayes.results import RunFolder, list_runs
from amortized_bayes.results.summary import summarise

SMALL = [
    *("--dataset", "drawn-topics", "--bits", "3", "17", "--epochs", "12", "--learning-rate", "0.02"),
    *("--num-validation", "100", "--evaluations", "3", "--points", "20", "--particles", "20"),
    *("--local-steps", "10", "--estimator-draws", "10", "--jobs", "1", "--device", "cpu", "--fine-epochs", "1"),
    *("--fine-particles", "2", "--batch-size", "100"),
]


@pytest.mark.slow
def test_semantic_hashing_from_start_to_figures(call, place):
    ran = call("semantic-hashing", *SMALL)
    assert ran.code == 0, ran.err
    (info,) = list_runs(place / "results")
    folder = RunFolder.open(info.path)
    assert folder.verify() == []
    rows = folder.rows()
    assert {path.name for path in folder.path.glob("*.png")} == {
        "hashing.png",
        "hashing_training.png",
        "hashing_estimators.png",
    }

    def value(metric, bits, error=False, **factors):
        row = wing.one(summarise(rows), metric, **{"bits": bits, "estimator": None, **factors})
        return row["standard_error"] if error else row["value"]

    for split in ("train", "test"):
        here = {"bits": 3, "split": split}
        log_p, best, elbo = (value(f"exact_{name}", **here) for name in ("log_p", "elbo_star", "elbo"))
        assert elbo <= best <= log_p
        assert value("exact_approximation_gap", **here) == pytest.approx(log_p - best)
        assert value("exact_amortization_gap", **here) == pytest.approx(best - elbo)
        assert value("exact_amortization_gap", error=True, **here) < 0.3 * value("exact_elbo", error=True, **here)
        bounds = {"bits": 17, "split": split}
        iwae, best, elbo = (value(name, **bounds) for name in ("iwae", "elbo_star", "elbo"))
        assert best <= iwae
        assert value("amortization_gap", **bounds) == pytest.approx(best - elbo)
    corpus = read_corpus("drawn-topics")
    x = splits_of(corpus, 100, 0).counts["test"]
    for bits in (3, 17):
        less = value("final_elbo", bits, split="test") + value("document_nelbo", bits, split="test")
        assert less == pytest.approx(-float(own_code_length(x).mean()), rel=1e-4)
        assert value("precision_at_100", bits, split="test") > 0.2  # of eight topics, one by chance
        curve = wing.only(rows, "validation_elbo", bits=bits)
        assert curve["step"].tolist() == [4, 9, 12, 13]  # 12 ends a stage
        assert value("best_epoch", bits, split="validation") == curve["step"].iloc[curve["value"].argmax()]
        variance = {name: value("gradient_variance", bits, estimator=name) for name in ("disarm", "arm", "reinforce")}
        assert variance["disarm"] < variance["arm"]
        assert value("seconds_per_step", bits, estimator="disarm") > 0
    assert value("seconds_per_step", 3, estimator="enumerated") > 0
    saved = value("document_nelbo", 3, split="test") - value("document_nelbo", 17, split="test")
    assert value("document_nelbo_saved", 17, split="test") == pytest.approx(saved, rel=1e-4)
    apart = [value("document_nelbo", bits, error=True, split="test") for bits in (3, 17)]
    assert value("document_nelbo_saved", 17, error=True, split="test") < math.hypot(*apart)  # paired by document
    kl = value("final_kl", 3, split="test")
    assert 0 < kl <= 3 * math.log(2)
    assert "held-out documents" in ran.out
    assert "variance of" not in ran.err


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(wing.QuickLab, "every", 0)
    config = Config(
        dataset="drawn-topics",
        bits=(17,),
        epochs=2,
        fine_epochs=2,
        fine_particles=2,
        batch_size=400,
        num_validation=100,
        evaluations=4,
        points=4,
        particles=2,
        local_steps=3,
        estimator_draws=2,
    )
    steps, taken = [], Training._step
    monkeypatch.setattr(Training, "_step", lambda self, done: steps.append(len(self.data)) or taken(self, done))
    whole = wing.values(wing.go("semantic-hashing", config, tmp_path / "whole").rows())
    in_whole = steps.count(1_100)
    wing.cut("semantic-hashing", config, tmp_path / "cut", wing.stop_at("training", 3))
    steps.clear()
    found = wing.values(wing.resume("semantic-hashing", tmp_path / "cut").rows())
    assert in_whole - steps.count(1_100) == 5  # of 8, two an epoch: the sixth was not kept
    for key in whole.keys() - {key for key in whole if key[0] == "training_seconds"}:
        assert found[key] == whole[key], key


def test_splits_share_no_document():
    corpus = read_corpus("drawn-topics")
    found = splits_of(corpus, 300, seed=1)
    assert {name: len(x) for name, x in found.counts.items()} == {"train": 900, "validation": 300, "test": 300}
    whole = sum(x.sums().sum() for name, x in found.counts.items() if name != "test")
    assert float(whole) == corpus.train.counts.counts.sum()
    other = splits_of(corpus, 300, seed=2)
    assert not torch.equal(found.labels["validation"], other.labels["validation"])
    with pytest.raises(ValueError, match="expected num_validation of at most 1198 of 1200 documents, got 1199"):
        splits_of(corpus, 1199, 0)


def test_own_code_length_is_the_entropy_of_a_document_times_its_length():
    x = splits_of(read_corpus("drawn-topics"), 100, 0).counts["test"][:5]
    for row, found in zip(x.dense().numpy(), own_code_length(x), strict=True):
        words = row[row > 0]
        assert float(found) == pytest.approx(-(words * np.log(words / words.sum())).sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset 20newsgrups", "expected --dataset 20newsgroups, drawn-topics or a folder"),
        ("--bits 0", "expected --bits of 1 or more"),
        ("--bits 8 8", "--bits"),
        ("--encoders cubic", "--encoders"),
        ("--objective enumerated --bits 9", "expected --bits of 8 or fewer with --objective enumerated, got 9"),
        ("--objective enumerated --bits 8 --fine-epochs 1", "expected --fine-epochs 0 with --objective enumerated"),
        ("--dataset drawn-topics --num-validation 1199", "expected num_validation of at most 1198"),
        ("--learning-rate 0", "expected --learning-rate above 0, got 0"),
        ("--epochs 0", "expected --epochs of 1 or more, got 0"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, message):
    assert message in refused("semantic-hashing", *arguments.split())
