"""The raw-byte tokenizer in the `tokenizers` library's format: id = byte, no specials, nothing merged.

Every byte is a symbol of a BPE model without merges, spelt with the printable alphabet of GPT-2's byte-level BPE
(https://huggingface.co/docs/tokenizers/api/pre-tokenizers, ByteLevel).
"""

from mambabyte.checkpoints.files import Writer, json_writer, text_writer
from mambabyte.data.subwords import symbols


def tokenizer_writers() -> dict[str, Writer]:
    """The files by which AutoTokenizer opens a model folder."""
    return {"tokenizer.json": text_writer(tokenizer_json()), "tokenizer_config.json": json_writer(tokenizer_config())}


def tokenizer_json() -> str:
    """The contents of tokenizer.json: text in UTF-8 bytes becomes ids 0..255, and back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in enumerate(symbols())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str(pretty=False)


def tokenizer_config() -> dict[str, object]:
    """The contents of tokenizer_config.json: the generic fast tokenizer, nothing added, nothing cleaned up."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
