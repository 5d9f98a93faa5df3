"""The command line before anything runs: commands, help, flags, files of settings, and one clear line for bad input."""

import gzip
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from run_folders import ROOT, create

from amortized_bayes import cli
from amortized_bayes.configuration import to_mapping
from amortized_bayes.experiments import ALIASES, EXPERIMENTS, experiment
from amortized_bayes.results import RunFolder

COMMANDS = [*EXPERIMENTS, "list", "plot", "table", "download"]
TRAINED = ["gaps", "qstar"]
"""Commands that need a trained model to begin with."""


@pytest.fixture(autouse=True)
def _place(place):
    return place


def parse(text):
    return cli._parse(text.split())


def python(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120, cwd=ROOT
    )


# Help -----------------------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_no_alias(call):
    shown = call("--help")
    assert shown.code == 0
    for name in COMMANDS:
        assert f" {name} " in shown.out, name
    for name in ALIASES:
        assert name not in shown.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call, command):
    shown = call(command, "--help")
    assert shown.code == 0
    assert not shown.err
    assert "--out" in shown.out or command == "download"
    if command in EXPERIMENTS:
        module = experiment(command)
        for flag in ("--preset", "--config", "--resume", "--dry-run", "--device", "--data-dir", "--wide"):
            assert flag in shown.out, flag
        words = (module.Config.__doc__ or "").split("\n")[0].split()
        assert " ".join(words[:3]) in " ".join(shown.out.split())


def test_help_loads_nothing_heavy():
    for arguments in ([], ["sweep"], ["frozen-decoder"], ["table"]):
        given = [*arguments, "--help"]
        code = (
            f"import sys; from amortized_bayes.cli import main\ntry: main({given!r})\n"
            "except SystemExit as stop: code = stop.code\n"
            "heavy = {'torch', 'pyro', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
            "print(code, sorted(heavy), file=sys.stderr)"
        )
        found = python("-c", code)
        assert found.stderr == "0 []\n", arguments
        assert "usage" in found.stdout
        if arguments == ["sweep"]:
            assert "1 4 16 64 256" in found.stdout


# Flags and files of settings ------------------------------------------------------------------------------------------


def test_a_bare_call_and_flags_alone_are_a_sweep():
    assert parse("") == parse("sweep")
    assert parse("").name == "sweep"
    assert parse("--widths 1 4 16").setting.widths == (1, 4, 16)
    assert parse("sweep --preset paper").setting.depth == 2
    assert parse("--preset=paper --depth 1").setting.depth == 1


def test_an_old_name_runs_the_experiment_that_has_a_new_one():
    assert parse("test-set-gaps --points 7") == parse("model-gaps --points 7")
    assert parse("test-set-gaps").name == "model-gaps"


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_presets_are_where_flags_start(command):
    for preset, setting in experiment(command).PRESETS.items():
        found = parse(f"{command} --preset {preset}")
        assert (found.setting, found.preset, found.name) == (setting, preset, command)


def test_flags_win_over_a_file_and_a_file_over_a_preset(tmp_path):
    (tmp_path / "c.yaml").write_text("epochs: 7\nwidths: [3]\n")
    setting = parse("sweep --preset paper --config c.yaml --widths 5 6").setting
    assert (setting.epochs, setting.widths, setting.latent_dim) == (7, (5, 6), 64)
    setting = parse("--preset paper --config=c.yaml").setting
    assert (setting.epochs, setting.widths, setting.latent_dim) == (7, (3,), 64)
    (tmp_path / "d.yaml").write_text("latent_dim: 7\n")
    setting = parse("train --preset paper --config d.yaml --hidden 5").setting
    assert (setting.epochs, setting.latent_dim, setting.hidden) == (3_280, 7, (5,))


def test_settings_of_a_model_or_of_bounds_are_flags_of_their_own(tmp_path):
    setting = parse("frozen-decoder --latent-dim 3 --chains 5 --no-early-stopping --points 9").setting
    assert (setting.model.latent_dim, setting.bounds.chains, setting.points) == (3, 5, 9)
    assert not setting.model.early_stopping
    (tmp_path / "c.yaml").write_text("model: {latent_dim: 4}\nbounds: {chains: 6}\n")
    setting = parse("frozen-decoder --config c.yaml --latent-dim 3").setting
    assert (setting.model.latent_dim, setting.bounds.chains) == (3, 6)
    assert parse("gaps mine --points 7").setting.checkpoint == "mine"


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "sweep --dataset nothing",
            "expected a data set (mnist, fashion-mnist, binarized-mnist, cifar10, digits, celeba) or a path",
        ),
        ("--dataset fashon-mnist", "did you mean 'fashion-mnist'?"),
        ("--dataset none.npz", "expected a numpy file, got 'none.npz': no such file"),
        ("--widths 0", "expected --widths of 1 or more, got [0]"),
        ("--widths", "expected --widths with one or more different values, got []"),
        ("--widths=4 --epochs -1", "expected --epochs of 2 or more, got -1"),
        ("--depth -1", "expected --depth of 0 or more, got -1"),
        ("--batch-size 0", "expected --batch-size of 1 or more, got 0"),
        ("--rates-constant nan 1", "expected --rates-constant above 0, got [nan, 1.0]"),
        ("--preset=nope", "expected --preset quick or paper, got 'nope'"),
        ("--preset quick --preset paper", "expected --preset once, got it 2 times: quick, paper"),
        ("--config a.yaml --config b.yaml", "expected --config once"),
        ("--resume nope", "expected a run under results, got 'nope': no such run; there are 0 runs"),
        ("--data-dir none", "expected a folder as data directory, got 'none'"),
        ("--dataset mnist", "mnist is unavailable"),
        ("--preset paper", "is unavailable"),
        ("table nope", "expected a run under results, got 'nope': no such run"),
        ("plot", "expected a run under results, got none"),
        ("download --dataset nope", "expected a data set"),
        ("download", "put "),
        ("train --dataset none.npz", "expected a numpy file, got 'none.npz': no such file"),
        ("train --latent-dim 0", "expected --latent-dim of 1 or more, got 0"),
        ("train --hidden 4 0", "expected --hidden of 1 or more, got [4, 0]"),
        ("train --learning-rate inf", "expected --learning-rate above 0, got inf"),
        ("train --epochs 5 --kl-warm-up 6", "expected --kl-warm-up of at most 5 epochs, got 6"),
        ("train --dataset cifar10 --decoder bayesian", "expected --decoder point for deep-convolutional networks"),
        ("decoder-capacity --dataset cifar10", "expected --network dense, whose hidden layers are counted"),
        ("train --binarization dynamic", "expected --binarization fixed for binarized-mnist"),
        ("gaps --points 1", "expected --points of 2 or more, got 1"),
        ("gaps --particles 24", "expected --particles of 25 or more, got 24"),
        ("gaps --chains 1", "expected --chains of 2 or more, got 1"),
        ("gaps --target-gap nan", "expected --target-gap above 0, got nan"),
        ("gaps --splits", "expected --splits with one or more different values, got []"),
        ("gaps --splits train train", "expected --splits with one or more different values, got ['train', 'train']"),
        ("gaps --temperatures 9 --max-temperatures 8", "expected --temperatures of at most 8, got 9"),
        ("qstar --restarts 1", "expected --restarts of 2 or more, got 1"),
        ("qstar --samples 5", "expected --samples with an even number, since draws come in pairs, got 5"),
        ("qstar --budgets 5 100", "expected --budgets of 10 or more, got [5, 100]"),
        ("qstar --budgets 10 10", "expected --budgets with one or more different values, got [10, 10]"),
        ("qstar --spreads -1", "expected --spreads of 0 or more, got [-1.0]"),
        ("model-gaps --points 1", "expected --points of 2 or more, got 1"),
        ("model-gaps --families spline", "expected --families among those of --best-families"),
        ("frozen-decoder --best-families auxiliary", "start with gaussian"),
        ("toy-posteriors --grid 2", "expected --grid of 20 or more, got 2"),
        ("toy-posteriors --latent-dim 3", "expected --latent-dim of 2, got 3"),
        ("decoder-capacity --layers -1", "expected --layers of 0 or more, got [-1]"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(refused, arguments, message, tmp_path):
    assert message in refused(*arguments.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_every_experiment_refuses_bad_presets_files_and_runs(refused, command, tmp_path):
    assert "expected --preset quick or paper, got 'nope'" in refused(command, "--preset", "nope")
    assert "cannot read none.yaml: No such file or directory" in refused(command, "--config", "none.yaml")
    assert "got 'nope': no such run" in refused(command, "--resume", "nope")
    assert f"expected an unfinished run of {command} under results" in refused(command, "--resume", "latest")
    (tmp_path / "c.yaml").write_text("nonsense: 1\n")
    assert "c.yaml: unknown key 'nonsense'" in refused(command, "--config", "c.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_no_experiment_resumes_a_run_of_another_kind_or_one_that_is_finished(refused, command, tmp_path):
    other = "train" if command != "train" else "sweep"
    cut = create(tmp_path / "results", "cut", other)
    assert f"expected a run of {command}, got" in refused(command, "--resume", "cut")
    assert f"a run of {other}" in refused(command, "--resume", cut.path)
    assert f"expected an unfinished run of {command}" in refused(command, "--resume", "latest")
    own = RunFolder.create(tmp_path / "results", command, to_mapping(experiment(command).PRESETS["quick"]), {}, "own")
    with own:
        own.finish()
    assert "which is finished" in refused(command, "--resume", "own")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("--widht 3", "--widths"),
        ("sweep --epoch 3", "--epochs"),
        ("--widths a", "--widths"),
        ("--likelihood poisson", "binomial"),
        ("--device tpu", "cuda"),
        ("--config", "--config"),
        ("nonsense", "sweep"),
        ("gaps --splits validation", "train"),
        ("qstar --starts guide", "encoder"),
    ],
)
def test_a_wrong_flag_gets_a_hint(call, arguments, hint, tmp_path):
    found = call(*arguments.split())
    assert found.code == 2
    assert hint in found.err
    assert "dummy" not in found.err
    assert not list(tmp_path.iterdir())


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
        ("!!python/object/apply:os.system [exit]", "expected YAML"),
    ],
)
def test_a_bad_config_is_one_line(refused, tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    said = refused("--config", "c.yaml")
    assert "c.yaml" in said
    assert message in said


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
        (np.full((9, 4), 0.3), ["--likelihood", "binomial"], "expected uint8 or whole grey levels from 0 to 1 for"),
    ],
    ids=["nan", "reals", "text", "one dimension", "between levels"],
)
@pytest.mark.parametrize("command", ["sweep", "train"])
def test_arrays_that_do_not_fit_leave_no_run(refused, tmp_path, command, array, flags, message):
    np.save(tmp_path / "x.npy", array)
    said = refused(command, "--dataset", "x.npy", *flags)
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


# Runs on disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["plot", "table"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_run_that_holds_nothing_yet_can_be_shown(call, tmp_path, command, name):
    RunFolder.create(tmp_path / "results", name, to_mapping(experiment(name).PRESETS["quick"]), {}, "nothing")
    found = call(command, "nothing")
    assert found.code == 0, found.err


def test_a_run_of_no_experiment_of_ours_is_one_line(refused, tmp_path):
    create(tmp_path / "results", "mine", "other")
    for command in ("plot", "table"):
        assert "expected an experiment" in refused(command, "mine")


def test_runs_are_listed_with_how_they_ended(call, tmp_path):
    assert "no runs in results" in call("list").out
    for name, status in (("good", "ok"), ("bad", "failed")):
        run = create(tmp_path / "results", name, "train")
        with run:
            run.mark_done("a", status)
            run.finish()
    RunFolder.create(tmp_path / "results", "train", {}, {"part_of": "model-gaps/x"}, "part")
    lines = call("list").out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["train/good", "finished"],
        ["train/bad", "failed"],
        ["train/part", "unfinished"],
    ]
    assert lines[-1].endswith("for model-gaps/x")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["train", "--epochs", "x"], "expected --epochs as an integer, got 'x'"),
        (["train", "--epoch", "3"], "expected a flag of train, got --epoch; did you mean --epochs?"),
        (["trains"], "expected a command among sweep, tune, train"),
        (["train", "--family", "planr"], "got 'planr'; did you mean 'planar'?"),
        (["trains"], "got 'trains'; did you mean 'train'?"),
        (["list", "--ot", "x"], "expected a flag of list, got --ot; did you mean --out?"),
        (["train", "foo"], "expected flags of train with their values, got 'foo', which belongs to none"),
        (["train", "--latent-dim=a"], "expected --latent-dim as an integer, got 'a'"),
        (["sweep", "--rates-amortized", "1"], "expected 2 values after --rates-amortized, got '1'"),
        (["train", "--epochs", "3", "--epochs", "4"], "expected --epochs once, got it 2 times: 3, 4"),
        (["train", "--early-stopping", "--no-early-stopping"], "expected --early-stopping once, got it 2 times"),
        (["train", "--\x1b[31mred"], "expected a flag of train, got --\\x1b[31mred"),
        (["train", "--dataset"], "expected a value after --dataset, got none"),
        (["train", "--dataset", ""], "expected a data set"),
        (["model-gaps", "--dataset", "a/x.npz", "b/x.npz"], "expected --dataset with files of different names"),
        (["plot", "--into", "notes.txt"], "expected a folder as --into, got notes.txt: a file"),
    ],
)
def test_what_cannot_be_read_is_one_line(call, tmp_path, given, words):
    (tmp_path / "notes.txt").write_text("")
    refused = call(*given)
    assert refused.code == 2
    (line,) = refused.err.splitlines()
    assert words in line


@pytest.mark.parametrize("flags", [["--epochs", "0"], ["--config", "no.yaml"], ["--preset", "paper", "--epochs", "7"]])
def test_flags_that_resuming_ignores_are_not_read(call, flags):
    refused = call("train", "--resume", "latest", *flags)
    assert refused.err.splitlines() == ["error: expected an unfinished run of train under results, got none"]


def test_download_says_what_there_is(call):
    found = call("download", "--dataset", "digits")
    assert found.code == 0
    assert "digits: 1,500 training and 297 test images" in found.out


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error():
    given = f"{sys.executable} {ROOT / 'run_experiments.py'} download --dataset digits digits"
    found = subprocess.run(f"{given} | true", shell=True, executable="/bin/bash", capture_output=True, text=True)
    assert "Traceback" not in found.stderr
    assert "error" not in found.stderr
