"""Hugging Face transformers and mambabyte: importing this registers the model type "mambabyte" with the Auto classes.

Needed only for models that stock transformers cannot express; the others open there without it. `patch` makes stock
Mamba models run on our kernels.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from mambabyte.hf.kernels import patch as patch
from mambabyte.hf.modeling import MambaByteConfig as MambaByteConfig
from mambabyte.hf.modeling import MambaByteForCausalLM as MambaByteForCausalLM
from mambabyte.hf.modeling import MambaByteModel as MambaByteModel
from mambabyte.hf.modeling import StateCache as StateCache

AutoConfig.register(MambaByteConfig.model_type, MambaByteConfig, exist_ok=True)
AutoModel.register(MambaByteConfig, MambaByteModel, exist_ok=True)
AutoModelForCausalLM.register(MambaByteConfig, MambaByteForCausalLM, exist_ok=True)
