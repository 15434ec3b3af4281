"""fxtie: tensors of a PyTorch model as functions of other tensors of the same model."""

from fxtie import transforms
from fxtie.capturing.report import Report, report
from fxtie.capturing.transform import transform
from fxtie.errors import CaptureError, FileError, FxtieError, Outdated, PlanError, RuleError
from fxtie.integrations.transformers import from_pretrained
from fxtie.life.convert import initialize, materialize, untied_state_dict
from fxtie.life.derive_once import derive_once
from fxtie.life.fit import Fit, fit
from fxtie.life.saving import check_saveable, load, save
from fxtie.life.verify import verify
from fxtie.life.verifying.results import Verification, VerificationError
from fxtie.looking.diff import GraphDiff, diff
from fxtie.looking.picture import TiePicture, picture
from fxtie.looking.suggest import suggest
from fxtie.looking.suggestions import Suggestion, Suggestions
from fxtie.pipelines.freeze import freeze
from fxtie.pipelines.passes import TiePass
from fxtie.planning.plan import Plan, plan
from fxtie.rules.files import dump_rules, load_rules
from fxtie.rules.free import Bank, Tensors
from fxtie.rules.rule import Rule, Tie, each
from fxtie.transforms import same
from fxtie.transforms.registry import register

__version__ = "0.1.0"

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
    "Tensors",
    "Tie",
    "TiePass",
    "TiePicture",
    "Verification",
    "VerificationError",
    "check_saveable",
    "derive_once",
    "diff",
    "dump_rules",
    "each",
    "fit",
    "freeze",
    "from_pretrained",
    "initialize",
    "load",
    "load_rules",
    "materialize",
    "picture",
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


def __dir__() -> list[str]:
    """The public names, and not the packages that they come from."""
    return [*__all__, "__all__", "__doc__", "__file__", "__name__", "__path__", "__version__"]
