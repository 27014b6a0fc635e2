"""`ByteLM` as a transformers model: same Auto classes, `generate`, cache, gradient checkpointing and LoRA targets.

Letters as in the layers: B batch, L length, D width, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput

from mambabyte import config as configs
from mambabyte.checkpoints import own_layout
from mambabyte.models import PRESETS, ByteLM, ByteLMConfig, ByteLMState
from mambabyte.models.byte_lm import Residual


class MambaByteConfig(PreTrainedConfig):
    """A `ByteLMConfig` that transformers can keep: `byte_lm` is its dict, the single truth about the architecture."""

    model_type = own_layout.MODEL_TYPE

    def __init__(self, byte_lm: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self.byte_lm = configs.to_dict(PRESETS["mambabyte-tiny"]) if byte_lm is None else dict(byte_lm)
        config = self.architecture()
        self.vocab_size = self.byte_lm["vocab_size"] = kwargs.pop("vocab_size", config.vocab_size)
        self.hidden_size, self.num_hidden_layers = config.d_model, len(config.pattern)
        self.use_cache = kwargs.pop("use_cache", True)
        described = {"hidden_size", "num_hidden_layers", "tie_word_embeddings"}
        super().__init__(
            tie_word_embeddings=config.tied_head, **{k: v for k, v in kwargs.items() if k not in described}
        )

    def architecture(self) -> ByteLMConfig:
        """The architecture. Raises ValueError naming the key that is wrong."""
        return own_layout.read_config({own_layout.KEY: self.byte_lm}, "config.json")


class StateCache:
    """The model's state in the shape `generate` expects of a cache; `state` is a value to keep and put back."""

    is_compileable = False

    def __init__(self, state: ByteLMState | None = None, length: int = 0) -> None:
        self.state = state
        self.length = length

    def get_seq_length(self) -> int:
        """Number of bytes read."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was (beam search)."""
        if self.state is not None:
            self.state = self.state.rows(beam_idx)


@dataclasses.dataclass
class MambaByteOutput(ModelOutput):
    """What a forward pass gives: absent fields are None."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    cache_params: StateCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class MambaBytePreTrainedModel(PreTrainedModel):
    """What both classes share: the `ByteLM` and how to run it."""

    config_class = MambaByteConfig
    config: MambaByteConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _is_stateful = True
    _no_split_modules = ("Residual",)
    _keep_in_fp32_modules_strict = ("A_log", r"layer\.D", "dt_bias")
    _tied_weights_keys = {"byte_lm.head.weight": "byte_lm.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: MambaByteConfig) -> None:
        super().__init__(config)
        self.byte_lm = ByteLM(config.architecture())
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Give a tensor that no file held the value that a new model has."""
        if isinstance(module, ByteLM):
            for name, fresh in ByteLM(module.config).state_dict().items():
                init.copy_(module.get_parameter(name), fresh)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding table."""
        return self.byte_lm.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embedding table."""
        self.byte_lm.embedding = value
        self.config.byte_lm["vocab_size"] = value.num_embeddings

    def run(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        cache_params: StateCache | None,
        use_cache: bool | None,
        output_hidden_states: bool | None,
    ) -> tuple[Tensor, StateCache | None, tuple[Tensor, ...] | None]:
        """Hidden states (B,L,D) of ids (B,L) or embeddings (B,L,D), the cache if used, and every layer's if asked for.

        A mask with zeros on the left makes a row what it would be without its padding. Raises ValueError unless exactly
        one of ids and embeddings is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of the two")
        if input_ids is not None:
            inputs_embeds = self.byte_lm.embedding(_without_padding(input_ids, attention_mask))
        assert inputs_embeds is not None
        checkpointing = self.gradient_checkpointing and self.training
        keep = (self.config.use_cache and not self.training if use_cache is None else use_cache) and not checkpointing
        cache = cache_params or StateCache()
        hidden, every, state = self._layers(inputs_embeds, cache.state, _resets(attention_mask, inputs_embeds))
        if keep:
            cache.state, cache.length = state, cache.length + inputs_embeds.shape[1]
        return hidden, cache if keep else None, (*every, hidden) if output_hidden_states else None

    def _layers(
        self, branch: Tensor, state: ByteLMState | None, resets: Tensor | None
    ) -> tuple[Tensor, list[Tensor], ByteLMState]:
        """The final hidden states, the stream below each layer, and the state after."""
        dtype, stream = branch.dtype, None
        checkpointing = self.gradient_checkpointing and self.training
        every, states = [], []
        for i, unit in enumerate(self.byte_lm.layers):
            every.append(branch if stream is None else stream + branch)
            arguments = (branch, stream, None if state is None else state.layers[i], resets, dtype)
            if checkpointing:
                branch, stream = self._gradient_checkpointing_func(_stateless, unit, *arguments)
            else:
                branch, stream, after = unit(*arguments)
                states.append(after)
        hidden, _ = self.byte_lm.norm(branch, stream, dtype)
        return hidden, every, ByteLMState(tuple(states))


class MambaByteModel(MambaBytePreTrainedModel):
    """What AutoModel gives: hidden states, no logits."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_params: StateCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> MambaByteOutput | tuple[Any, ...]:
        """`last_hidden_state` (B,L,D); see `MambaBytePreTrainedModel.run`."""
        hidden, cache, every = self.run(
            input_ids, attention_mask, inputs_embeds, cache_params, use_cache, output_hidden_states
        )
        output = MambaByteOutput(last_hidden_state=hidden, cache_params=cache, hidden_states=every)
        return output.to_tuple() if return_dict is False else output


class MambaByteForCausalLM(MambaBytePreTrainedModel, GenerationMixin):
    """What AutoModelForCausalLM gives: logits of the next byte, a loss if labels are given, and `generate`."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `run` makes its own, which holds a ByteLMState

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.byte_lm.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the head."""
        self.byte_lm.head = value  # type: ignore[assignment]

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        use_cache: bool | None = None,
        cache_params: StateCache | None = None,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of the next forward: with a cache, the padding was seen in the first one."""
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            use_cache=use_cache,
            cache_params=cache_params,
            attention_mask=attention_mask,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if use_cache and not is_first_iteration:
            inputs["attention_mask"] = None
        return inputs

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_params: StateCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MambaByteOutput | tuple[Any, ...]:
        """float32 `logits` (B,L,V), and `loss` in nats if `labels` (B,L) are given (shifted here, -100 ignored).

        `logits_to_keep` n > 0 gives the last n positions only, a tensor those positions.
        """
        hidden, cache, every = self.run(
            input_ids, attention_mask, inputs_embeds, cache_params, use_cache, output_hidden_states
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.byte_lm.head(hidden[:, kept]).float()
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        output = MambaByteOutput(loss=loss, logits=logits, cache_params=cache, hidden_states=every)
        return output.to_tuple() if return_dict is False else output


def _stateless(unit: Residual, *arguments: Any) -> tuple[Tensor, Tensor]:
    branch, stream, _ = unit(*arguments)
    return branch, stream


def _without_padding(ids: Tensor, mask: Tensor | None) -> Tensor:
    """The ids with zero where the mask is: a padding id may lie outside the vocabulary."""
    return ids if mask is None or mask.shape != ids.shape else ids.masked_fill(mask == 0, 0)


def _resets(mask: Tensor | None, embeddings: Tensor) -> Tensor | None:
    """(B,L) bool: the first position of each row that is not padding, where padding comes before it."""
    if mask is None or mask.shape != embeddings.shape[:2]:
        return None
    real = mask != 0
    padded = real & (real.cumsum(dim=1) == 1)
    padded[:, 0] = False
    return padded if padded.any() else None
