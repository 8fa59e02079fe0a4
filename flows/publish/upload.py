"""Uploads a checkpoint with its card to the hub: one commit, private unless it is said otherwise.

The token is that of huggingface_hub (HF_TOKEN, else the one of `hf auth login`); it is sent to the hub only.
"""

from collections.abc import Iterator

from huggingface_hub import CommitOperationAdd, HfApi, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils._validators import validate_repo_id

from flows.publish.bundle import CARD_FILE, Bundle
from flows.publish.facts import PublishError
from stages.config.plain import make_printable
from stages.job.hub import DOWNLOADS, allows_downloads, make_hub_client

_LOGIN = "set HF_TOKEN, or log in with `hf auth login`"


def check_upload(name: str) -> None:
    """Raises PublishError when nothing can be uploaded to `name` (owner/name): no such id, off-line, no token."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise PublishError(f"{name!r} is no id of the hub: {make_printable(str(error))}") from error
    if name.count("/") != 1:
        raise PublishError(f"{name!r} names no owner; write hub:owner/name")
    if not allows_downloads():
        raise PublishError(f"nothing was uploaded: this project is off-line; {DOWNLOADS}=1 lets it ask the hub")
    if get_token() is None:
        raise PublishError(f"nothing was uploaded: the hub needs a token that may write; {_LOGIN}")


def upload_bundle(bundle: Bundle, card: str, name: str, public: bool = False) -> str:
    """Uploads all files and the card as one commit, and returns its address.

    A repository that is not there is made, private unless `public`. Raises PublishError when it is public and `public`
    is false, and when the hub refuses or cannot be asked: then a later call begins again, and files that the hub has
    are not sent twice.
    """
    set_client_factory(make_hub_client)
    api = HfApi()
    additions = [CommitOperationAdd(file.name, file.source) for file in bundle.files]
    additions.append(CommitOperationAdd(CARD_FILE, card.encode()))
    try:
        if not public and _is_public(api, name):
            raise PublishError(f"{name} is there and public; --public uploads to it all the same")
        api.create_repo(name, private=not public, exist_ok=True)
        done = api.create_commit(name, additions, commit_message="Upload a checkpoint with its card")
    except PublishError:
        raise
    except Exception as error:  # HTTP libraries have errors without a common class; each is told, none is dropped
        raise PublishError(_explain_refusal(error, name)) from error
    return str(done.commit_url)


def _is_public(api: HfApi, name: str) -> bool:
    try:
        return api.model_info(name).private is False
    except RepositoryNotFoundError:
        return False


def _explain_refusal(error: Exception, name: str) -> str:
    response = error.response if isinstance(error, HfHubHTTPError) else None
    status = None if response is None else int(response.status_code)
    if status == 401:
        return f"{name}: the hub does not accept the token; {_LOGIN}"
    if status == 403:
        return f"{name}: the token may not write there; use one with the right to write, or another owner"
    if status is not None:
        return f"{name}: the hub answers {status} ({_shorten(error)}); correct what it names, or try again later"
    last = list(_iter_causes(error))[-1]
    return (
        f"{name}: the upload broke off ({type(last).__name__}: {_shorten(last)}); check network and proxy and run it "
        "again: files that the hub has are not sent twice"
    )


def _iter_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _shorten(error: object) -> str:
    return make_printable(str(error))[:160]
