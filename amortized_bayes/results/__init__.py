"""Run folders: everything that one run of an experiment leaves behind.

::

    <out>/<experiment>/<run>/
        config.yaml  environment.json      what was run, and on what
        STARTED                            checksums of these two
        rows.jsonl  done.jsonl             a line per ``Row`` with the key of its job; a line per finished job,
                                           with the checksums of its rows and files
        checkpoints/*.safetensors          two generations each, with checksums
        arrays/*.npz  summary.csv          what figures need, and the final values
        FINISHED                           checksums of all of these, once the run is over

A run that is kept in a repository has its rows as ``rows.jsonl.gz`` (:mod:`~amortized_bayes.results.packing`).

A job counts when it is marked done, ``ok`` or ``failed``: its rows are synced first, then the mark. Resuming drops the
rows of jobs that are not, and runs these again. One process writes to a run, inside ``with run:``; anybody may read.
A file that is not as it was kept is refused, whoever reads it.

Nothing here imports torch; numpy and pandas are imported when the first array or frame is asked for.
"""

from amortized_bayes.results.folder import RunFolder
from amortized_bayes.results.runs import RunInfo, find_run, list_runs
from amortized_bayes.results.summary import summarise
from amortized_bayes.results.versions import environment

__all__ = ["RunFolder", "RunInfo", "environment", "find_run", "list_runs", "summarise"]
