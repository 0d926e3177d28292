"""Upload of a published folder to the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path

from resnet_builder.errors import HubError
from resnet_builder.weights.hub import CARD, HubName, hub_errors, library, without_bars


def push(
    folder: Path,
    repository: str,
    *,
    files: Sequence[str],
    outdated: Sequence[str] = (),
    private: bool | None = None,
) -> str:
    """Upload a published folder to a repository, in one commit; it is made if it does not exist.

    The token is the one that ``hf auth login`` stored, or ``HF_TOKEN``.

    Args:
        folder: The folder.
        repository: ``USER/NAME``.
        files: Files of the folder to upload.
        outdated: Files that are deleted, if an earlier upload left them.
        private: Whether a new repository is private; ``None`` leaves it to the Hub: it is public,
            unless an organisation decides otherwise.

    Returns:
        Address of the repository.

    Raises:
        HubError: The Hub cannot be reached, or refuses; the repository is public and was to be
            private.
        UsageError: huggingface_hub is not installed.
    """
    hub = library()
    name = HubName(repository)
    with hub_errors(f"cannot push {folder} to {name}"), without_bars():
        card = hub.ModelCard.load(folder / CARD)
        try:
            card.validate()
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise HubError(
                f"cannot push {folder} to {name}: the Hub says of its card: {reason}"
            ) from error
        api = hub.HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise HubError(f"cannot push {folder} to {name}: it exists already, and is public")
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            allow_patterns=list(files),
            delete_patterns=list(outdated),
            commit_message=f"Publish {folder.absolute().name}",
        )
    return str(address)
