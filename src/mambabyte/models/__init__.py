"""Models: the byte language model, its presets and what they cost."""

from mambabyte.models.byte_lm import ByteLM as ByteLM
from mambabyte.models.byte_lm import ByteLMConfig as ByteLMConfig
from mambabyte.models.byte_lm import ByteLMState as ByteLMState
from mambabyte.models.cost import Cost as Cost
from mambabyte.models.cost import model_cost as model_cost
from mambabyte.models.presets import PRESETS as PRESETS
from mambabyte.models.presets import preset as preset
from mambabyte.models.subword_lm import SubwordLM as SubwordLM
