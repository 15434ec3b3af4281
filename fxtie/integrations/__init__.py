"""What tied models need in the tools that people train and share with."""

from fxtie.foreign import Foreign, declare
from fxtie.integrations.transformers import TiedPretrained, own_ties

declare("transformers.modeling_utils.PreTrainedModel", Foreign(TiedPretrained, own_ties))
