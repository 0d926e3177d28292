"""Published weights: folders that ``publish`` writes, and repositories of the Hugging Face Hub."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from resnet_builder.errors import CheckpointError, HubError, UsageError, the_extra
from resnet_builder.spec.bundled import is_hub_name

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
"""Files of a published folder, by the names that the Hub's libraries look for."""

_PICKLED = "pytorch_model.bin"
"""Name of the weights in repositories that are older than safetensors."""

_BESIDE = (CONFIG, "preprocessor_config.json", "spec.yaml", "result.json")
"""Files that are downloaded with the weights: of timm and transformers, and of ``publish``."""

_MAX_WEIGHTS, _MAX_BESIDE = 2**33, 2**22
"""Bytes of the largest files that are downloaded: 2 billion parameters, 20,000 class names."""

_COMMIT = re.compile(r"[0-9a-f]{40}")

_REASONS = {
    401: "the Hub does not know you; log in by `hf auth login`, or set HF_TOKEN",
    403: "the Hub does not let you; does your token allow writing, in this namespace?",
    404: "there is no such repository for you; of a private one, log in by `hf auth login`",
    409: "the Hub is busy with another change of the same repository; try again",
    429: "the Hub has had too many requests from you; wait, and try again",
}


@dataclass(frozen=True, slots=True)
class HubName:
    """Name of a repository of the Hub.

    Attributes:
        repo: User or organisation, and name: ``timm/resnet50.a1_in1k``.
        revision: Branch, tag or commit; ``None`` for the main branch.
    """

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Read ``hf-hub:USER/NAME`` or ``hf-hub:USER/NAME@REVISION``.

        Raises:
            UsageError: It is something else.
        """
        repo, _, revision = text.partition(":")[2].partition("@")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII) or text.endswith("@"):
            raise UsageError(f"{text}: name a repository as hf-hub:USER/NAME[@REVISION]")
        return cls(repo, revision or None)

    def __str__(self) -> str:
        return f"hf-hub:{self.repo}" + (f"@{self.revision}" if self.revision else "")


def find_weights(source: str | Path) -> Path:
    """Find the file of weights that a name stands for, and download it if it is on the Hub.

    Args:
        source: ``hf-hub:USER/NAME[@REVISION]``, a folder with ``model.safetensors``, or any other
            path, which is returned as it is.

    Raises:
        CheckpointError: The repository has no weights, or they are too large.
        HubError: The Hub cannot be reached or refuses, and the file was not downloaded before.
        UsageError: huggingface_hub is not installed, or the name is none.
    """
    if is_hub_name(str(source)):
        return _download(HubName.parse(str(source)))
    path = Path(source)
    return path / WEIGHTS if (path / WEIGHTS).is_file() else path


def find_folder(source: str | Path) -> Path:
    """Find the folder that a name stands for, and download it if it is on the Hub.

    Args:
        source: ``hf-hub:USER/NAME[@REVISION]`` of a folder that ``publish`` wrote; or any path,
            which is returned as it is.

    Raises:
        CheckpointError: The repository has no weights, or they are too large.
        HubError: The Hub cannot be reached or refuses, and the files were not downloaded before.
        UsageError: huggingface_hub is not installed, or the name is none.
    """
    return find_weights(source).parent if is_hub_name(str(source)) else Path(source)


def hub_commit(file: Path) -> str | None:
    """Commit that a downloaded file is of; ``None`` for other files."""
    # The Hub's cache keeps files as models--USER--NAME/snapshots/COMMIT/FILE.
    commit, folder = file.parent.name, file.parent.parent.name
    return commit if folder == "snapshots" and _COMMIT.fullmatch(commit) else None


def pinned_name(source: str | Path, file: Path) -> str:
    """Name of weights with the commit that they are of, if they are on the Hub.

    Args:
        source: Name, as for :func:`find_weights`.
        file: The file that was found.
    """
    commit = hub_commit(file)
    if commit is None or not is_hub_name(str(source)):
        return str(source)
    return str(HubName(HubName.parse(str(source)).repo, commit))


@cache  # all that a process reads of a repository is of one commit
def _download(name: HubName) -> Path:
    """Download the weights of a repository, and the small files beside them, to the Hub's cache."""
    with hub_errors(f"cannot download {name}"):
        for weights in (WEIGHTS, _PICKLED):
            path = _download_file(name, weights, name.revision)
            if path is not None:
                for beside in _BESIDE:
                    _download_file(name, beside, hub_commit(path))
                return path
    raise CheckpointError(f"{name} has neither {WEIGHTS} nor {_PICKLED}")


def _download_file(name: HubName, file: str, revision: str | None) -> Path | None:
    """Download a file, unless it is in the cache; ``None`` if the repository has none."""
    hub = library()
    errors, only_cached = hub.errors, False
    try:
        try:
            url = hub.hf_hub_url(name.repo, file, revision=revision)
            _check_size(name, file, hub.get_hf_file_metadata(url).size)
        except errors.HfHubHTTPError:
            raise  # the Hub has answered
        except (errors.OfflineModeIsEnabled, *_transport_errors(hub)):
            only_cached = True
        with without_bars():
            found = hub.hf_hub_download(
                name.repo, file, revision=revision, local_files_only=only_cached
            )
    except errors.LocalEntryNotFoundError:
        if revision is not None and revision != name.revision:
            return None  # of a commit that was found, a file beside its weights
        raise
    except errors.EntryNotFoundError:
        return None
    _check_size(name, file, Path(found).stat().st_size)
    return Path(found)


def _check_size(name: HubName, file: str, size: int | None) -> None:
    limit = _MAX_BESIDE if file in _BESIDE else _MAX_WEIGHTS
    if size is not None and size > limit:
        raise CheckpointError(f"{name}: {file} has {size:,} bytes; at most {limit:,} are read")


# The library.


def library() -> Any:
    """Import huggingface_hub.

    Raises:
        UsageError: It is not installed.
    """
    try:
        hub: ModuleType = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise UsageError(f"publish and the Hugging Face Hub need {the_extra('publish')}") from error
    return hub


@contextmanager
def hub_errors(action: str) -> Iterator[None]:
    """Context that turns each error of huggingface_hub into one line.

    Args:
        action: Beginning of the message, as "cannot download hf-hub:USER/NAME".

    Raises:
        HubError: The Hub cannot be reached, or refuses.
        UsageError: huggingface_hub is not installed.
    """
    hub = library()
    errors = hub.errors
    try:
        yield
    except errors.GatedRepoError as error:
        reason = "its owner asks you to accept terms first, on its page on the Hub"
        raise HubError(f"{action}: {reason}") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{action}: there is no such revision") from error
    except errors.RepositoryNotFoundError as error:  # the Hub answers 401, to hide private ones
        raise HubError(f"{action}: {_REASONS[404]}") from error
    except errors.HfHubHTTPError as error:
        _raise_refusal(action, error)
    except errors.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else "the Hub is not reached"
        raise HubError(f"{action}: {why}, and it was not downloaded before") from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError(f"{action}: HF_HUB_OFFLINE is set") from error
    except errors.HFValidationError as error:
        raise HubError(f"{action}: {_first_line(error)}") from error
    except RuntimeError as error:  # of an upload or a download in parts; it names its cause
        cause = f": {_first_line(error.__cause__)}" if error.__cause__ else ""
        raise HubError(f"{action}: {_first_line(error)}{cause}") from error
    except _transport_errors(hub) as error:
        where = hub.constants.ENDPOINT
        raise HubError(f"{action}: {where} cannot be reached: {_first_line(error)}") from error


def _raise_refusal(action: str, error: Any) -> NoReturn:
    status = error.response.status_code
    said = " ".join((error.server_message or _first_line(error)).split())
    reason = _REASONS.get(status, f"the Hub answers {status}")
    raise HubError(f"{action}: {reason} ({status}: {said})") from error


def _transport_errors(hub: Any) -> tuple[type[BaseException], ...]:
    """Errors of the network, of whichever HTTP library the Hub's library uses."""
    bases = hub.errors.HfHubHTTPError.__mro__
    http = next((base for base in bases if base.__name__ == "HTTPError"), ConnectionError)
    return http, ConnectionError, TimeoutError


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")


@contextmanager
def without_bars() -> Iterator[None]:
    """Context in which the library draws no progress bars of its own."""
    utils = importlib.import_module("huggingface_hub.utils")
    are_off = utils.are_progress_bars_disabled()
    if not are_off:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if not are_off:
            utils.enable_progress_bars()
