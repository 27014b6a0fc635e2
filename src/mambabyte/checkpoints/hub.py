"""Models on the Hugging Face Hub, named "hf://owner/name" or "hf://owner/name@revision".

All transfers, caching, credentials and path rules are those of the huggingface_hub library (extra `hf`).
"""

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Self

from mambabyte.checkpoints.files import SUMS
from mambabyte.checkpoints.layout import CONFIG
from mambabyte.checkpoints.weights import PICKLE, SAFETENSORS

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf://"
CARD = "README.md"
_REFERENCE = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_SMALL = [CONFIG, "tokenizer*.json", "subwords.json", SUMS]
_WEIGHTS = {name: [name, f"{Path(name).stem}-*", f"{name}.index.json"] for name in (SAFETENSORS, PICKLE)}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A repository of models and, if given, its branch, tag or commit."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "hf://owner/name[@revision]". Raises ValueError for anything else."""
        match = _REFERENCE.fullmatch(text)
        if match is None or ".." in text:
            raise ValueError(
                f"{text!r} is not a model on the Hub; one is named hf://owner/name or hf://owner/name@revision"
            )
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def download(reference: Reference) -> Path:
    """The folder of a repository's model in the local cache, fetched if it is not there: safetensors, else a pickle.

    Raises ValueError if there is no such repository or revision, or if the Hub cannot be reached.
    """
    hub = _library()
    with _sentences(reference):
        for weights in _WEIGHTS.values():
            patterns = [*_SMALL, *weights]
            path = hub.snapshot_download(reference.repository, revision=reference.revision, allow_patterns=patterns)
            if any((Path(path) / name).exists() for name in weights):
                break
    return Path(path)


def upload(folder: Path, reference: Reference, *, private: bool) -> str:
    """Send the files of a folder as one commit, making the repository if it is missing; returns the commit's address.

    Weights in the repository that the folder does not hold go; a model card that is there stays. Raises ValueError if
    the Hub cannot be reached or refuses.
    """
    api: HfApi = _library().HfApi()
    name, revision = reference.repository, reference.revision
    with _sentences(reference):
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            ignore_patterns=[CARD] if api.file_exists(name, CARD, revision=revision) else None,
            delete_patterns=[pattern for weights in _WEIGHTS.values() for pattern in weights],
            commit_message="Upload a mambabyte model",
        )
    return str(commit.commit_url)


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ValueError("models on the Hub need huggingface_hub: pip install 'mambabyte-lm[hf]'") from error
    return huggingface_hub


@contextmanager
def _sentences(reference: Reference) -> Iterator[None]:
    """Turn what the library raises into a ValueError that names the repository."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{reference}: the repository has no revision {reference.revision!r}") from error
    except errors.GatedRepoError as error:
        raise ValueError(f"{reference}: its owner gives access on request; ask on its page, then log in") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"{reference}: no such repository, or a private one: `hf auth login` lets you in") from error
    except (OSError, errors.HTTPError, errors.HFValidationError) as error:  # refused, offline, not reached, misnamed
        raise ValueError(f"{reference}: {str(error).strip().splitlines()[0]}") from error
