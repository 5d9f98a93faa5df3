"""The command line as a user meets it: commands, flags, help, and one clear line for what cannot be."""

import gzip
import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import seaborn
import torch
import yaml
from matplotlib import pyplot as plt
from run_folders import ROOT, fill_disk

from amortized_bayes import cli
from amortized_bayes.commands import drawing
from amortized_bayes.commands import sweep as command
from amortized_bayes.commands.progress import SweepProgress
from amortized_bayes.data import loading
from amortized_bayes.experiments import fitting, tune
from amortized_bayes.experiments.fitting import Progress
from amortized_bayes.experiments.sweep import Fit, Rates
from amortized_bayes.results import RunFolder, list_runs

TINY = [
    *("--widths", "2", "--hidden", "4", "--latent-dim", "2", "--epochs", "1", "--batch-size", "50"),
    *("--num-train", "100", "--num-test", "20", "--compile-step", "off", "--device", "cpu"),
    *("--elbo-draws", "2", "--iwae-particles", "4", "--iwae-points", "10"),
]
DIGITS = ["--dataset", "digits", *TINY]


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    """An empty folder, no data but the embedded digits, and few visits of test points."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AMORTIZED_BAYES_DATA", raising=False)
    monkeypatch.setattr(fitting, "FRESH_VISITS", 2)
    monkeypatch.setattr(fitting, "FRESH_REPORTS", 2)
    monkeypatch.setattr(loading, "download_idx_set", refuse)


@pytest.fixture
def _undrawn(monkeypatch):
    monkeypatch.setattr(drawing, "draw_all", lambda *_: [])


def refuse(*_):
    raise OSError("no network here")


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return stop.value.code or 0


@pytest.fixture
def refused(capsys):
    """Call the command and return the one line that says what is wrong."""

    def of(*arguments):
        assert call(*arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1, said
        return said

    return of


def write(path, text):
    path.write_text(text)
    return path


def python(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120, cwd=ROOT
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sweep --dataset nothing", "expected a data set (mnist, fashion-mnist, binarized-mnist, digits) or a path"),
        ("--dataset fashon-mnist", "did you mean 'fashion-mnist'?"),
        ("--dataset none.npz", "expected a numpy file, got 'none.npz': no such file"),
        ("--widths 0", "expected --widths of 1 or more, got [0]"),
        ("--widths", "expected --widths with one or more different values, got []"),
        ("--widths=4 --epochs -1", "expected --epochs of 1 or more, got -1"),
        ("--depth -1", "expected --depth of 0 or more, got -1"),
        ("--batch-size 0", "expected --batch-size of 1 or more, got 0"),
        ("--rates-constant nan 1", "expected --rates-constant with two learning rates above 0, got [nan, 1.0]"),
        ("--preset nope", "expected --preset quick or paper, got 'nope'"),
        ("--preset=nope", "expected --preset quick or paper, got 'nope'"),
        ("--config none.yaml", "cannot read none.yaml: No such file or directory"),
        ("--resume nope", "expected a run under results, got 'nope': no such run; there are 0 runs"),
        ("--resume latest", "got 'latest'"),
        ("--data-dir none", "expected a folder as data directory, got 'none'"),
        ("table nope", "expected a run under results, got 'nope': no such run"),
        ("plot", "got 'latest': no such run"),
        ("download --dataset nope", "expected a data set"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, message, tmp_path):
    assert message in refused(*arguments.split())
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("--widht 3", "--widths"),
        ("sweep --epoch 3", "--epochs"),
        ("--widths a", "--widths"),
        ("--likelihood poisson", "bernoulli"),
        ("--device tpu", "cuda"),
        ("--config", "--config"),
        ("nonsense", "sweep"),
    ],
)
def test_a_wrong_flag_gets_a_hint_and_no_traceback(capsys, arguments, hint):
    assert call(*arguments.split()) == 2
    said = capsys.readouterr().err
    assert hint in said
    assert "Traceback" not in said
    assert "dummy" not in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo: 1", "unknown key 'foo'"),
        ("widhts: [1]", "did you mean 'widths'?"),
        ("{a: [", "expected YAML"),
        ("", "expected a mapping"),
        ("- 1", "expected a mapping"),
        ("widths: [0]", "expected --widths of 1 or more, got [0]"),
        ("widths: 3", "widths: expected a list of int, got 3 (int)"),
        ("epochs: many", "epochs: expected int"),
        ("preset: none", "preset: expected one of 'quick', 'paper'"),
        ("!!python/object/apply:os.system [exit]", "expected YAML"),
    ],
)
def test_a_bad_config_is_one_line(refused, tmp_path, text, message):
    said = refused("--config", write(tmp_path / "c.yaml", text))
    assert "c.yaml" in said
    assert message in said


def test_a_partial_config_starts_from_its_preset_and_flags_win(tmp_path):
    path = write(tmp_path / "c.yaml", "preset: paper\nepochs: 7\nwidths: [3]\n")
    setting = cli._parse(["sweep", "--config", str(path), "--widths", "5", "6"]).setting
    assert (setting.preset, setting.epochs, setting.widths, setting.latent_dim) == ("paper", 7, (5, 6), 64)
    path = write(tmp_path / "d.yaml", "epochs: 7\n")
    assert cli._parse(["--preset", "paper", f"--config={path}"]).setting.latent_dim == 64


def test_a_preset_beside_a_config_of_another_is_refused(refused, tmp_path):
    path = write(tmp_path / "c.yaml", "preset: quick\n")
    assert "expected --preset quick, as" in refused("--preset", "paper", "--config", path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(refused):
    said = refused("--dataset", "digits", "--device", "cuda")
    assert "expected a CUDA device for --device cuda, got none" in said


@pytest.mark.parametrize(
    ("array", "flags", "message"),
    [
        (np.full((9, 4), np.nan), [], "expected finite float32 values, got 36 others"),
        (np.linspace(-1, 3, 36).reshape(9, 4), [], "expected uint8 or values in [0, 1] for --likelihood bernoulli"),
        (np.array([["a"]]), [], "expected real numbers"),
        (np.zeros(5), ["--likelihood", "gaussian"], "expected shape (N, P)"),
    ],
    ids=["nan", "reals", "text", "one dimension"],
)
def test_arrays_that_do_not_fit_leave_no_run(refused, tmp_path, array, flags, message):
    np.save(tmp_path / "x.npy", array)
    said = refused("--dataset", tmp_path / "x.npy", *flags)
    assert message in said
    assert "x.npy" in said
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("content", [b"no image", gzip.compress(b"\x00\x00\x08\x03" + bytes(40), mtime=0), b""])
def test_a_damaged_image_file_is_named(refused, tmp_path, content):
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for kind in ("train", "t10k"):
        for what in ("images-idx3", "labels-idx1"):
            (folder / f"{kind}-{what}-ubyte.gz").write_bytes(content)
    said = refused("--dataset", "mnist", "--data-dir", tmp_path / "data")
    assert "-ubyte.gz" in said
    refused("--data-dir", tmp_path / "data")  # a damaged file is never taken for a missing one
    assert not (tmp_path / "results").exists()


def test_out_that_is_a_file_or_cannot_be_written(refused, tmp_path):
    said = refused(*DIGITS, "--out", write(tmp_path / "file", "mine"))
    assert "cannot write to" in said
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_ends_with_a_line_and_the_finished_fits_stay(refused, tmp_path, monkeypatch):
    done = RunFolder.mark_done

    def fill_after(folder, key):
        done(folder, key)
        if "amortized" in key:
            fill_disk(monkeypatch)

    monkeypatch.setattr(RunFolder, "mark_done", fill_after)
    assert "No space left on device" in refused(*DIGITS, "--out", tmp_path / "full")
    (info,) = list_runs(tmp_path / "full")
    folder = RunFolder.open(info.path)
    assert (info.status, info.num_fits) == ("unfinished", 2)
    assert folder.verify() == []
    assert (folder.rows()["metric"] == "final_elbo").sum() == 2


def test_help_needs_no_torch():
    for arguments in ([], ["sweep"], ["list"], ["plot"], ["table"], ["download"]):
        given = [*arguments, "--help"]
        code = (
            f"import sys; from amortized_bayes.cli import main\ntry: main({given!r})\n"
            "except SystemExit as stop: code = stop.code\n"
            "heavy = {'torch', 'pyro', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
            "print(code, sorted(heavy), file=sys.stderr)"
        )
        found = python("-c", code)
        assert found.stderr == "0 []\n"
        assert "usage" in found.stdout
        if arguments == ["sweep"]:
            assert "--widths" in found.stdout
            assert "1 4 16 64 256" in found.stdout


def test_a_bare_call_and_flags_alone_are_a_sweep():
    assert cli._parse([]) == cli._parse(["sweep"]) == command.Sweep()
    assert cli._parse(["--widths", "1", "4", "16"]).setting.widths == (1, 4, 16)
    assert cli._parse(["sweep", "--preset", "paper"]).setting.depth == 2
    assert cli._parse(["--preset=paper", "--depth", "1"]).setting.depth == 1


def test_a_reader_that_goes_away_is_no_error():
    call = f"{sys.executable} {ROOT / 'run_experiments.py'} download --dataset digits digits"
    found = subprocess.run(
        f"{call} | true",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in found.stderr
    assert "error" not in found.stderr


def test_the_whole_way_from_sweep_to_figures(capsys, tmp_path):
    style = seaborn.axes_style(), plt.rcParams.copy(), plt.get_fignums()
    assert call("sweep", *DIGITS) == 0
    said = capsys.readouterr()
    assert said.out.startswith("amortized_bayes: starting a sweep")
    assert "against the best F-VI found, k = 2" in said.out
    assert "figures: digits_comp.png" in said.out
    assert (seaborn.axes_style(), plt.rcParams.copy(), plt.get_fignums()) == style
    (info,) = list_runs(tmp_path / "results")
    folder = RunFolder.open(info.path)
    names = {f"{n}.{e}" for n in ("digits_elbo", "digits_mse", "family_gap", "re1", "memory") for e in ("png", "pdf")}
    assert names <= {p.name for p in info.path.iterdir()}
    assert folder.verify() == []
    environment = json.loads((info.path / "environment.json").read_text())
    assert set(environment) >= {"packages", "device", "threads", "git", "data", "command", "started"}
    assert list(environment["data"]) == ["digits"]

    assert call("list") == 0
    assert f"sweep/{info.name}  finished" in capsys.readouterr().out
    assert call("table") == 0
    assert "family gap" in capsys.readouterr().out
    assert call("plot", info.name, "--into", tmp_path / "again") == 0
    again = (tmp_path / "again" / "digits_elbo.png").read_bytes()
    assert again == (info.path / "digits_elbo.png").read_bytes()
    assert folder.verify() == []


@pytest.mark.usefixtures("_undrawn")
def test_the_config_of_a_run_runs_it_again_with_equal_numbers(tmp_path, refused):
    assert call(*DIGITS) == 0
    (first,) = list_runs(tmp_path / "results")
    config = first.path / "config.yaml"
    assert call("--config", config, "--device", "cpu", "--out", "again") == 0
    (second,) = list_runs(tmp_path / "again")
    assert config.read_bytes() == (second.path / "config.yaml").read_bytes()
    finals = []
    for info in (first, second):
        frame = RunFolder.open(info.path).rows()
        finals.append(frame[frame["metric"].isin(["final_elbo", "family_gap", "log_predictive"])]["value"].tolist())
    assert finals[0] == finals[1]
    assert "which is finished" in refused("--resume", "latest")


@pytest.mark.usefixtures("_undrawn")
def test_an_interrupted_sweep_says_how_to_go_on_and_goes_on(tmp_path, monkeypatch, capsys, refused):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((40, 6), dtype=np.float32))
    mine = ["--dataset", "x.npy", *TINY]

    def stop(self, at):
        if at.fit.guide == "factorized":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SweepProgress, "__call__", stop)
        assert call(*mine) == 130
    said = capsys.readouterr().err
    (info,) = list_runs(tmp_path / "results")
    assert f"sweep --resume results/sweep/{info.name}" in said
    assert info.status == "unfinished"
    before = (info.path / "rows.jsonl").read_bytes()

    kept = (tmp_path / "x.npy").read_bytes()
    np.save(tmp_path / "x.npy", np.zeros((40, 6), dtype=np.float32))
    assert "got other files of ['x.npy']" in refused("--resume", "latest")
    (tmp_path / "x.npy").write_bytes(kept)

    assert call("--resume", "latest", "--device", "cpu", "--epochs", "9") == 0
    assert "other flags of the setting are ignored" in capsys.readouterr().err
    rows = (info.path / "rows.jsonl").read_bytes()
    assert rows.startswith(before[: before.rfind(b'"final')])
    assert [i.status for i in list_runs(tmp_path / "results")] == ["finished"]


@pytest.mark.usefixtures("_undrawn")
@pytest.mark.parametrize("from_config", [False, True])
def test_without_data_a_bare_sweep_takes_digits_and_says_so(tmp_path, capsys, refused, from_config):
    if from_config:  # a file names its data sets
        path = write(tmp_path / "c.yaml", "dataset: [mnist]\n")
        assert "mnist is not to be had" in refused("--config", path)
        assert "MNIST/raw" in refused("--dataset=mnist", *TINY)
        return
    assert call(*TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    note = "embedded digits (scikit-learn, 8x8) stand in for MNIST and FashionMNIST, which could not be had"
    assert lines[1] == lines[-1] == note
    (info,) = list_runs(tmp_path / "results")
    frame = RunFolder.open(info.path).rows()
    assert frame["note"].str.contains(note, regex=False).all()
    assert set(frame["dataset"]) == {"digits"}
    config = yaml.safe_load((info.path / "config.yaml").read_text())
    assert (config["dataset"], config["epochs"]) == (["digits"], 1)


@pytest.mark.usefixtures("_undrawn")
def test_an_interrupted_tuning_goes_on_to_its_sweep(tmp_path, monkeypatch):
    grid = {f: [Rates(4e-3, r) for r in (2e-3, 4e-3)] for f in ("constant", "amortized", "factorized")}
    monkeypatch.setattr(tune, "GRID", grid)
    say = SweepProgress.say

    def stop(self, line):
        say(self, line)
        if "amortized" in line:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SweepProgress, "say", stop)
        assert call(*DIGITS, "--tune") == 130
    (info,) = list_runs(tmp_path / "results")
    assert (info.experiment, info.status, info.num_fits) == ("tune", "unfinished", 3)
    assert call("--resume", "latest", "--device", "cpu") == 0
    tuned, swept = list_runs(tmp_path / "results")
    assert (tuned.experiment, tuned.status, tuned.num_fits) == ("tune", "finished", 6)
    assert (swept.experiment, swept.status) == ("sweep", "finished")
    assert set(RunFolder.open(tuned.path).rows()["metric"]) == {"tune_elbo"}
    config = yaml.safe_load((swept.path / "config.yaml").read_text())
    assert config["tune"] is False
    assert config["rates_constant"][1] in (2e-3, 4e-3)
    for name in (tuned.name, swept.name):
        assert call("table", name) == 0


def test_plot_and_table_of_a_run_that_holds_nothing_yet(tmp_path, capsys):
    setting = command.to_mapping(command.SweepConfig())
    RunFolder.create(tmp_path / "results", "sweep", setting, {}, "empty")
    for name in ("plot", "table"):
        assert call(name, "empty") == 0


def test_figures_that_cannot_be_written(refused, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw_all", lambda *_: [])
        call(*DIGITS)
    (info,) = list_runs(tmp_path / "results")
    refused("plot", info.name, "--into", write(tmp_path / "file", ""))


def test_download_says_what_there_is(capsys, refused):
    assert call("download", "--dataset", "digits") == 0
    assert "digits: 1,500 training and 297 test images" in capsys.readouterr().out
    assert "put " in refused("download")


def test_progress_away_from_a_terminal_is_a_line_every_30_seconds(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    fit = Fit("digits", 0, "amortized", 4)
    with SweepProgress(2, file_is_terminal=False) as progress:
        for second in range(100):
            now[0] = float(second)
            progress(Progress(fit, second, 100, -65.4, False))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("[    30 s] fit 1/2  digits seed 0 amortized k = 4  step 30/100")
    assert "ELBO -65.4" in lines[0]
    assert "left" in lines[0]


def test_rows_of_all_runs_have_the_same_columns(tmp_path):
    frame = RunFolder.create(tmp_path, "sweep", {}, {}).rows()
    assert isinstance(frame, pd.DataFrame)
    assert frame.empty
