"""Certified ranges of smoothness, gradients and cosines: what holds on a whole set, not on a sample of it.

A model is read as a graph of affine maps, activations and sums (`read_network`), from which bounds are
derived along the segments of a given attack (`segment_bounds`), over l2 balls (`ball_bounds`) and over all
inputs (`whole_space_bounds`); `certify_transfer` says which models no attack in an l2 or linf ball fools
together. All hold up to float64 rounding: computed in float64, inflated by 1e-9 of it.
"""

from estimators.certified.ball import BallBounds, ball_bounds
from estimators.certified.chain import PROOF_LINES, SmoothnessChain, smoothness_chain
from estimators.certified.cosine import certified_gradient_range, cosine_range, margin_curvature
from estimators.certified.lipschitz import lipschitz_constants
from estimators.certified.network import Network, UnsupportedLayer, read_network
from estimators.certified.ranges import logit_gap_ranges, loss_range
from estimators.certified.segment import SegmentBounds, segment_bounds, segment_smoothness
from estimators.certified.smoothness import certified_smoothness
from estimators.certified.transfer import BallTransfer, certify_goals, certify_groups, certify_transfer
from estimators.certified.whole_space import WholeSpaceBounds, whole_space_bounds

__all__ = [
    "PROOF_LINES",
    "BallBounds",
    "BallTransfer",
    "Network",
    "SegmentBounds",
    "SmoothnessChain",
    "UnsupportedLayer",
    "WholeSpaceBounds",
    "ball_bounds",
    "certified_gradient_range",
    "certified_smoothness",
    "certify_goals",
    "certify_groups",
    "certify_transfer",
    "cosine_range",
    "lipschitz_constants",
    "logit_gap_ranges",
    "loss_range",
    "margin_curvature",
    "read_network",
    "segment_bounds",
    "segment_smoothness",
    "smoothness_chain",
    "whole_space_bounds",
]
