"""From trained models and data to the quantities of the theory, each with the direction in which it errs.

Models are `torch.nn.Module`s from inputs (n, *shape) to logits (n, K); losses are per-sample functions of
logits (n, K) and labels (n,). Everything is evaluated in the dtype of the inputs, which has to be the
model's, with the model in evaluation mode; modes, gradients and `requires_grad` are left as found. Work is
done in batches, never sample by sample.
"""

from estimators.batching import Support
from estimators.extremal_search import (
    BallSearch,
    cosine_search,
    gradient_norm_over_balls,
    gradient_norm_search,
    similarity_over_balls,
)
from estimators.extremes import extrapolated_supremum
from estimators.finite_scale import FiniteScaleSmoothness, finite_scale_smoothness
from estimators.gradients import gradient_norm, input_gradients
from estimators.hessian import hessian_norms
from estimators.kinks import DivergenceTest, divergence_test, kinks, traced_kinks
from estimators.losses import LossFunction, cross_entropy, label_losses, margin
from estimators.margin_remainder import margin_remainder
from estimators.margins import minimum_loss, targeted_constants, untargeted_constants
from estimators.points import measure_attack, measure_points
from estimators.quantities import measure_quantities
from estimators.remainder import remainder
from estimators.risk import effectiveness, empirical_risk, risk
from estimators.shift import ShiftStatements, distribution_shift, shift_statements, smoothed_shift_bound
from estimators.similarity import gradient_similarity
from estimators.smoothness import Convergence, SampledSmoothness, sampled_smoothness, smoothness

__all__ = [
    "BallSearch",
    "Convergence",
    "DivergenceTest",
    "FiniteScaleSmoothness",
    "LossFunction",
    "SampledSmoothness",
    "ShiftStatements",
    "Support",
    "cosine_search",
    "cross_entropy",
    "distribution_shift",
    "divergence_test",
    "effectiveness",
    "empirical_risk",
    "extrapolated_supremum",
    "finite_scale_smoothness",
    "gradient_norm",
    "gradient_norm_over_balls",
    "gradient_norm_search",
    "gradient_similarity",
    "hessian_norms",
    "input_gradients",
    "kinks",
    "label_losses",
    "margin",
    "margin_remainder",
    "measure_attack",
    "measure_points",
    "measure_quantities",
    "minimum_loss",
    "remainder",
    "risk",
    "sampled_smoothness",
    "shift_statements",
    "similarity_over_balls",
    "smoothed_shift_bound",
    "smoothness",
    "targeted_constants",
    "traced_kinks",
    "untargeted_constants",
]
