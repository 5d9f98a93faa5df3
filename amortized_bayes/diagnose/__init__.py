"""Where the nats go: one call that says what the family, the amortization and the estimates cost, point by point."""

from amortized_bayes.diagnose.report import Certificate, Diagnosis
from amortized_bayes.diagnose.run import diagnose
from amortized_bayes.diagnose.verdict import Verdict

__all__ = ["Certificate", "Diagnosis", "Verdict", "diagnose"]
