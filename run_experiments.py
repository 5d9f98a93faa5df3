"""Run the experiments: ``python run_experiments.py --help``."""

from amortized_bayes.cli import main

if __name__ == "__main__":
    main()
