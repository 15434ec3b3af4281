"""fxtie: tensors of a PyTorch model as functions of other tensors of the same model."""

from fxtie import transforms
from fxtie.bank import Bank
from fxtie.capture import transform
from fxtie.convert import initialize, materialize, untied_state_dict
from fxtie.diff import GraphDiff, diff
from fxtie.errors import CaptureError, FileError, FxtieError, Outdated, PlanError, RuleError
from fxtie.export.freeze import freeze
from fxtie.files.rule_files import dump_rules, load_rules
from fxtie.files.tied_models import check_saveable, load, save
from fxtie.fit import Fit, fit
from fxtie.once import derive_once
from fxtie.passes import TiePass
from fxtie.plan import Plan, plan
from fxtie.report import Report, report
from fxtie.rules import Rule, Tie
from fxtie.suggesting.suggest import Suggestion, Suggestions, suggest
from fxtie.transforms import same
from fxtie.transforms.registry import register
from fxtie.verify import verify
from fxtie.verifying.results import Verification, VerificationError

__all__ = [
    "Bank",
    "CaptureError",
    "FileError",
    "Fit",
    "FxtieError",
    "GraphDiff",
    "Outdated",
    "Plan",
    "PlanError",
    "Report",
    "Rule",
    "RuleError",
    "Suggestion",
    "Suggestions",
    "Tie",
    "TiePass",
    "Verification",
    "VerificationError",
    "check_saveable",
    "derive_once",
    "diff",
    "dump_rules",
    "fit",
    "freeze",
    "initialize",
    "load",
    "load_rules",
    "materialize",
    "plan",
    "register",
    "report",
    "same",
    "save",
    "suggest",
    "transform",
    "transforms",
    "untied_state_dict",
    "verify",
]
