"""Where do the nats go? ``diagnose`` takes a model and a guide as they are and says what costs how much.

Point by point: the family, the amortization, and the estimates themselves.
"""

from amortized_bayes.diagnosis.report import Certificate, Diagnosis
from amortized_bayes.diagnosis.run import DiagnosisSettings, diagnose
from amortized_bayes.diagnosis.verdict import Verdict

__all__ = ["Certificate", "Diagnosis", "DiagnosisSettings", "Verdict", "diagnose"]
