"""Where do the nats go? ``diagnose`` takes a model and a guide as they are and says what costs how much.

Point by point: the family, the amortization, and the estimates themselves. Many points can be measured in blocks, side
by side.
"""

from amortized_bayes.diagnosis.blocks import diagnose_block, join_blocks, prepare_blocks
from amortized_bayes.diagnosis.report import Certificate, Diagnosis
from amortized_bayes.diagnosis.run import diagnose
from amortized_bayes.diagnosis.settings import DiagnosisSettings
from amortized_bayes.diagnosis.stages import Groundwork
from amortized_bayes.diagnosis.verdict import Verdict

__all__ = [
    "Certificate",
    "Diagnosis",
    "DiagnosisSettings",
    "Groundwork",
    "Verdict",
    "diagnose",
    "diagnose_block",
    "join_blocks",
    "prepare_blocks",
]
