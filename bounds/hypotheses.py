"""Hypotheses that several statements share and that no number decides."""

from bounds.statement import Hypothesis

H0 = Hypothesis("H0: a model predicts a label of least loss (any rule for ties)")
H1 = Hypothesis(
    "H1: beta holds on the whole segment from x to the attacked x, for every label that the proof uses "
    "(so the domain is convex, or beta is taken over its convex hull); a network with ReLU has none",
    stated=False,
    erratum=5,
)
H2 = Hypothesis(
    "H2: the perturbation has l2 norm at most eps at every point of the support, misclassified ones included",
    stated=False,
)
NONZERO_GRADIENTS = Hypothesis(
    "the gradients that c_F and c_G divide by are nonzero on the whole support", stated=False
)
NON_NEGATIVE_LOSS = Hypothesis("the loss is >= 0 wherever a mean of it is taken", erratum=4)
BOTH_LABELS = Hypothesis(
    "B and beta cover the true label and the label that the attack reaches", erratum=6
)  # fmt: skip
