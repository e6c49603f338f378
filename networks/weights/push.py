"""Upload an exported network to a hub, with the package huggingface-hub."""

from pathlib import Path

TOKEN_HINT = "log in with `hf auth login`, or set HF_TOKEN"


def check_push(repository: str) -> None:
    """Raise ValueError unless a folder can be pushed as OWNER/NAME, as far as that is known without asking the hub."""
    try:
        from huggingface_hub import get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError:
        raise ValueError("--push needs the package huggingface-hub (pip install huggingface-hub)") from None
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"--push {repository}: {error}") from None
    if repository.count("/") != 1:
        raise ValueError(f"--push {repository}: expected OWNER/NAME")
    if get_token() is None:
        raise ValueError(f"--push {repository}: there is no token: {TOKEN_HINT}")


def push(folder: Path, repository: str) -> str:
    """Upload a folder as OWNER/NAME, which is made as a private repository if it does not exist; return a message.

    HF_ENDPOINT names another hub. Raises ValueError if the hub refuses, or does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    api = HfApi()
    try:
        url = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported with Clipline")
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = f"; {TOKEN_HINT}" if status in (401, 403) else ""
        reason = (error.server_message or str(error)).splitlines()[0]
        raise ValueError(f"--push {repository}: the hub answers {status}: {reason}{hint}") from None
    except (HTTPError, OSError) as error:  # no answer: the errors of the package's own HTTP client
        raise ValueError(f"--push {repository}: no connection to the hub: {str(error).splitlines()[0]}") from None
    return f"pushed to {url} (a new repository is private until you make it public there)"
