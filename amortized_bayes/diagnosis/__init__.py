"""The library's two calls: what does it cost to share the inference, and where do the nats go?

``compare`` fits constant, amortized and factorized guides to anybody's model. ``diagnose`` takes a model
and a guide as they are and says, point by point, what the family, the amortization and the estimates cost.
"""

from amortized_bayes.diagnosis.comparing import compare
from amortized_bayes.diagnosis.comparison import Comparison
from amortized_bayes.diagnosis.report import Certificate, Diagnosis
from amortized_bayes.diagnosis.run import diagnose
from amortized_bayes.diagnosis.verdict import Verdict

__all__ = ["Certificate", "Comparison", "Diagnosis", "Verdict", "compare", "diagnose"]
