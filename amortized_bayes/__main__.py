"""``python -m amortized_bayes``: the command line, as ``python run_experiments.py``."""

from amortized_bayes.cli import main

if __name__ == "__main__":
    main()
