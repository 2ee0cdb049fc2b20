"""Where MODEL.WEIGHTS points: a file, or an address that is downloaded once and kept."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from torchvision.models import get_model_weights, list_models

from lgd.ending import BREAKING
from lgd.weights.download import download
from lgd.weights.files import local_file
from lgd.weights.packages import find_in_package
from lgd.weights.report import WeightsError
from lgd.weights.timm_models import fetch_from_timm

_MODEL_ZOO = "https://dl.fbaipublicfiles.com/detectron2/"
_TORCHVISION_FAMILIES = re.compile(r"(resnet|resnext|swin_(?!v2))")
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")
_HASH_IN_FRAGMENT = re.compile(r"sha256=([0-9a-fA-F]{64})$")


def fetch_weights(text: str | Path) -> Path:
    """The local file that MODEL.WEIGHTS names, downloaded where it is an address.

    Args:
        text: a path; `https://...`, with `#sha256=DIGITS` to check it; `detectron2://PATH` of detectron2's
            model zoo; `torchvision://NAME` or `torchvision://NAME/WEIGHTS` of a torchvision classifier;
            `pip://NAME` of an installed package that holds one weights file; `timm://NAME` of timm.

    Returns:
        The file as given, or the one in the cache.

    Raises:
        WeightsError: no such file, an address of another kind, or the download failed.
    """
    if "://" not in str(text):
        return local_file(text)
    if str(text).startswith("pip://"):
        return find_in_package(str(text).removeprefix("pip://"))
    if str(text).startswith("timm://"):
        return fetch_from_timm(str(text).removeprefix("timm://"), cache_folder() / "timm")
    url = resolve_url(str(text))
    try:
        parts = urlsplit(url)
        file = cached_path(parts)
    except WeightsError:
        raise
    except ValueError as error:  # a port or a host that is none
        raise WeightsError(f"{text}: not an address: {error}") from None
    download(url.removesuffix(f"#{parts.fragment}"), file, sha256=_expected_sha256(parts))
    return file


def resolve_url(text: str) -> str:
    """The https address behind a detectron2://, torchvision:// or https:// one.

    Raises:
        WeightsError: another scheme, or a name that torchvision does not have.
    """
    scheme, rest = text.split("://", 1)
    if scheme == "detectron2":
        return _MODEL_ZOO + rest
    if scheme == "torchvision":
        return _torchvision_url(rest)
    if scheme == "https":
        return text
    hint = ": nothing would show that the file arrived unchanged" if scheme == "http" else ""
    raise WeightsError(
        f"{text}: weights are not fetched by {scheme}://{hint}; "
        "give a file, https://, detectron2://, torchvision://, timm:// or pip://"
    )


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/lgd/weights`, or `~/.cache/lgd/weights`."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".cache"
    return base / "lgd" / "weights"


def cached_path(parts: SplitResult) -> Path:
    """Where the file of an address is kept: a folder by its host, below it the address's own path.

    Raises:
        WeightsError: the address names no file.
    """
    names = [name for name in unquote(parts.path).split("/") if name]
    letters = (parts.hostname or "") + "".join(names)
    is_text = all(unicodedata.category(letter) not in BREAKING for letter in letters)
    if not names or not is_text or not parts.hostname or {".", ".."} & set(names) or parts.path.endswith("/"):
        raise WeightsError(f"{parts.geturl()}: names no file")
    if parts.query:
        names[-1] = re.sub(r"[^\w.=&-]", "_", parts.query)[:100] + "-" + names[-1]
    host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    return cache_folder().joinpath(host, *names)


def _torchvision_url(name: str) -> str:
    model, _, variant = name.partition("/")
    known = [known for known in list_models() if _TORCHVISION_FAMILIES.match(known)]
    if model not in known:
        near = difflib.get_close_matches(model[:100], known, n=1)
        hint = f"; did you mean torchvision://{near[0]}?" if near else ""
        raise WeightsError(f"torchvision://{name}: there is {', '.join(known)}{hint}")
    variants = get_model_weights(model)
    if variant and variant not in variants.__members__:
        raise WeightsError(f"torchvision://{name}: {model} has the weights {', '.join(variants.__members__)}")
    chosen = variants[variant] if variant else variants["DEFAULT"]
    return str(chosen.url)


def _expected_sha256(parts: SplitResult) -> str | None:
    """The digest of the file or its first digits, where the address tells them."""
    if parts.fragment:
        match = _HASH_IN_FRAGMENT.match(parts.fragment)
        if match is None:
            raise WeightsError(
                f"{parts.geturl()}: after # belongs sha256= with the 64 digits of the file's SHA-256"
            )
        return match[1].lower()
    match = _HASH_IN_NAME.search(parts.path)
    return match[1] if match else None
