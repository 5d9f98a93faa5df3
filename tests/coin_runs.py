"""Runs of the experiment ``coins``, which tests add."""

from toy import coins

from amortized_bayes.results import RunFolder, list_runs


def only_run(out, experiment="coins"):
    (info,) = [info for info in list_runs(out) if info.experiment == experiment]
    return RunFolder.open(info.path)


def interrupted(command, monkeypatch, after):
    """Interrupt a run of three coins before the coin number ``after``."""
    throw, thrown = coins.throw, []

    def tire(config, coin, lab):
        if len(thrown) == after:
            raise KeyboardInterrupt
        thrown.append(coin)
        return throw(config, coin, lab)

    monkeypatch.setattr(coins, "throw", tire)
    stopped = command("coins", "--coins", 0.1, 0.2, 0.3)
    monkeypatch.setattr(coins, "throw", throw)
    assert stopped.code == 130
    assert "--resume latest" in stopped.err
