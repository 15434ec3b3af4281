"""What tied models need in the tools that people train and share with."""

from fxtie.foreign import Foreign, declare, declare_offloading
from fxtie.integrations.accelerate import HOOK, loading
from fxtie.integrations.peft import TiedAdapters, TiedPeft
from fxtie.integrations.transformers import TiedPretrained, own_ties

declare("transformers.modeling_utils.PreTrainedModel", Foreign(TiedPretrained, own_ties))
declare("peft.peft_model.PeftModel", Foreign(TiedPeft))
declare("peft.tuners.tuners_utils.BaseTunerLayer", Foreign(TiedAdapters))
declare_offloading(HOOK, loading)
