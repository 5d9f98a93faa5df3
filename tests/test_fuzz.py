"""Flipped bits and cut files: what is read is what it was, or one line says that it is not. No third thing.

A quick sample of each reader; the slow test does 1,000 flips and 200 cuts over every file of runs, of reports and of
data, with a fixed seed.
"""

import os
import random
import shutil
import signal
import warnings
from collections import Counter
from pathlib import Path

import made_runs
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from run_folders import create, row
from wing import CPU

import amortized_bayes as ab
from amortized_bayes.data import read_dataset
from amortized_bayes.data.catalogue import DATASETS
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.results import RunFolder, find_run

SECONDS = 120
"""Of any one read, after which it hangs."""
JOBS = ("a", "b", "c")
STEPS = 6


def outcomes(paths, read, generator, flips, cuts):
    """Damage one of some files at a time; count what came of it, and fail on anything else."""
    good, found = read(), Counter()
    for number in range(flips + cuts):
        path = generator.choice(paths)
        data = path.read_bytes()
        place, bit = generator.randrange(len(data)), 1 << generator.randrange(8)
        flipped = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
        path.write_bytes(flipped if number < flips else data[:place])
        signal.alarm(SECONDS)
        try:
            again = read()
        except ValueError as error:
            found["refused" if 10 < len(str(error)) < 2_000 and "\n" not in str(error) else f"{error!r}"] += 1
        else:
            assert again == good, (path, place, bit, number < flips)
            found["same"] += 1
        finally:
            signal.alarm(0)
            path.write_bytes(data)
    assert read() == good
    assert found.keys() <= {"refused", "same"}
    return found


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def carry_on(run, stop=None):
    """What an experiment does with its folder: jobs that are not done are run, from their last checkpoint."""
    with run, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the generation before is used
        run.forget(run.damaged().keys())
        run.drop_unfinished_rows()
        for key in JOBS:
            if key in run.done():
                continue
            kept = (run.path / "checkpoints" / f"{key}.safetensors").exists()
            first, total = run.load_tensors(key)["state"].tolist() if kept else (0, 0)
            for step in range(STEPS):
                if step >= first:
                    total += step
                    run.save_tensors(key, {"state": np.array([step + 1, total])}, job=key)
                if (key, step) == stop:
                    return
                run.append(row(step=step, seed=JOBS.index(key)), key)
            run.append(row(step=STEPS, value=total, seed=JOBS.index(key)), key)
            run.save_arrays(key, key, total=np.array(total))
            run.mark_done(key)
        run.sort(JOBS)
        run.finish()


def resumed(tmp_path):
    """An unfinished run: two jobs are done, the third is on its way; and how it ends."""
    run = create(tmp_path / "results")
    carry_on(run, stop=("c", 3))

    def read():
        again = tmp_path / "again" / "widths" / "run"
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(run.path, again)
        ended = RunFolder.open(again)
        carry_on(ended)
        assert [line for line in ended.verify() if not line.startswith("checkpoints/")] == []
        arrays = [ended.load_arrays(key)["total"].tolist() for key in JOBS]
        return ended.lines(), ended.environment(), ended.read("config.yaml"), arrays

    return files_of(run.path), read


def shown(tmp_path, call):
    """A finished run, and what commands say of it."""
    run = made_runs.gaps().save(tmp_path / "results").path

    def read():
        found = [call("table", run), call("claims", "--out", run.parents[1]), call("list", "--out", run.parents[1])]
        refused = [one for one in found if one.code]
        for one in refused:
            assert (one.code, one.out, one.err.count("\n")) == (2, "", 1)
        if refused:
            assert call("verify", run).code == 1
            raise ValueError(refused[0].err.strip())
        assert call("verify", run).code == 0 or "sha256" in call("verify", run).out
        return [one.out for one in found]

    return files_of(run), read


def trained(tmp_path, trained_results):
    """A trained model, with what ``gaps`` takes of it."""
    shutil.copytree(trained_results, tmp_path / "results")
    run = find_run(tmp_path / "results", "latest", "train")

    def read():
        kept = Lab(tmp_path / "results", CPU).checkpoint(run)
        return kept.config, {name: value.tolist() for name, value in kept.guide.state_dict().items()}

    return files_of(run), read


def normal(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None].expand(-1, 2), 0.5).to_event(1), obs=x)


def reports(tmp_path):
    """Reports in files, and what they say."""
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    guide = ab.Constant(ab.latent_sites(normal, x).local, len(x))
    settings = ab.DiagnosisSettings(num_particles=100, certificate=ab.CertificateSettings(4, 0.1, 64))
    ab.diagnose(normal, guide, x, settings=settings, progress=False).save(tmp_path / "diagnosis")
    fits = ab.ComparisonSettings(4, 2, num_draws=3, fit=ab.FitOptions(capture="off", batch_size=6))
    ab.compare(normal, x, widths=(2,), settings=fits, progress=False).save(tmp_path / "comparison")

    def read():
        found = ab.Diagnosis.load(tmp_path / "diagnosis"), ab.Comparison.load(tmp_path / "comparison")
        return [(str(report), report.to_frame().to_json()) for report in found]

    return [tmp_path / "diagnosis", tmp_path / "comparison"], read


def data_files(tmp_path, folder, name):
    """A data set in its files, and the pixels and labels in them; a user's own has its checksum in every run."""
    if folder is None:
        pixels = np.random.default_rng(0).integers(0, 9, (40, 6), dtype=np.uint8)
        np.savez_compressed(tmp_path / "mine.npz", train=pixels)
        np.save(tmp_path / "mine.npy", pixels)
        paths = [tmp_path / "mine.npz", tmp_path / "mine.npy"]
    else:
        for source in files_of(folder):
            shutil.copyfile(source, tmp_path / source.relative_to(folder).as_posix().replace("/", "-"))
        (tmp_path / "data").mkdir()
        shutil.copytree(folder, tmp_path / "data" / folder.name, copy_function=shutil.copyfile)
        paths = files_of(tmp_path / "data")
        for path in [tmp_path / "data", *(tmp_path / "data").rglob("*")]:
            path.chmod(0o755)

    def read():
        names = [name] if folder is not None else [str(path) for path in paths]
        found = [read_dataset(one, data_dir=tmp_path / "data" if folder else None, download=False) for one in names]
        sums = [tuple(data.sha256.values()) for data in found]
        if folder is None and sums != known:
            raise ValueError("another checksum, which a run that resumes or measures refuses")
        return [(data.train.pixels.tobytes(), data.test.pixels.tobytes(), str(data.train.labels)) for data in found]

    known = [tuple(read_dataset(str(path)).sha256.values()) for path in paths] if folder is None else []
    return paths, read


def readers(tmp_path, trained_results, call):
    """All that is read, each in a folder of its own."""
    made = {
        "resumed": lambda place: resumed(place),
        "shown": lambda place: shown(place, call),
        "trained": lambda place: trained(place, trained_results),
        "reports": lambda place: reports(place),
        "own data": lambda place: data_files(place, None, "mine"),
    }
    if os.environ.get("AMORTIZED_BAYES_DATA"):
        for name in ("mnist", "fashion-mnist", "binarized-mnist", "cifar10"):
            files = DATASETS[name].files
            assert files is not None
            folder = Path(os.environ["AMORTIZED_BAYES_DATA"]) / files().folder.split("/")[0]
            if folder.is_dir():
                made[name] = lambda place, folder=folder, name=name: data_files(place, folder, name)
    for name, make in made.items():
        (tmp_path / name).mkdir()
        yield name, lambda name=name, make=make: make(tmp_path / name)


SAMPLE = {"resumed": (25, 6), "shown": (8, 2), "trained": (10, 3), "reports": (60, 15), "own data": (20, 5)}
MANY = {
    "resumed": (250, 50),
    "shown": (150, 30),
    "trained": (150, 30),
    "reports": (200, 40),
    "own data": (130, 30),
    **dict.fromkeys(("mnist", "fashion-mnist", "binarized-mnist", "cifar10"), (30, 5)),
}


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.slow_cases("reports")
def test_a_sample(name, tmp_path, trained_results, call):
    flips, cuts = SAMPLE[name]
    paths, read = dict(readers(tmp_path, trained_results, call))[name]()
    assert sum(outcomes(paths, read, random.Random(1), flips, cuts).values()) == flips + cuts


@pytest.mark.slow
def test_a_thousand_flips_and_two_hundred_cuts(tmp_path, trained_results, call, capsys):
    assert sum(flips for flips, _ in MANY.values()) >= 1_000
    assert sum(cuts for _, cuts in MANY.values()) >= 200
    for name, make in readers(tmp_path, trained_results, call):
        paths, read = make()
        flips, cuts = MANY[name]
        found = outcomes(paths, read, random.Random(2), flips, cuts)
        with capsys.disabled():
            print(f"\n{name}: {dict(found)}", end="")
