"""Attacks: the gradient attacks in a ball, CW and EAD, joint attacks, or one of your own.

`run_attack` runs what an `AttackMethod` describes on one model; `joint.joint_attack` looks for one
perturbation that fools several models; `presets` has the paper's parameters.
"""

from empirical.attacks.base import LOSSES, AttackMethod, dlr_loss, margin_loss
from empirical.attacks.gradient import FAILURE_POLICIES, METHODS, NORMS, Attack
from empirical.attacks.library import CarliniWagner, ElasticNet
from empirical.attacks.run import (
    ATTACKS,
    AttackResult,
    attack_from_json,
    ball_attack,
    predict,
    register_attack,
    run_attack,
)
from empirical.health import AttackHealth

__all__ = [
    "ATTACKS",
    "FAILURE_POLICIES",
    "LOSSES",
    "METHODS",
    "NORMS",
    "Attack",
    "AttackHealth",
    "AttackMethod",
    "AttackResult",
    "CarliniWagner",
    "ElasticNet",
    "attack_from_json",
    "ball_attack",
    "dlr_loss",
    "margin_loss",
    "predict",
    "register_attack",
    "run_attack",
]
