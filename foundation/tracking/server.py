"""Whether Weights & Biases can be reached from here, and by whom."""

from __future__ import annotations

import netrc
import os
import ssl
import urllib.error
import urllib.request
from urllib.parse import urlsplit

NAME = "Weights & Biases"
UNSENT = "not-all-uploaded"  # file beside the log of an online run that could not be uploaded whole
TIMEOUT = 5.0  # seconds to wait for an answer; W&B itself would try for 90

_PUBLIC = ("api.wandb.ai", "api.forge.coreweave.com")  # two names of one server; a key may stand under either


def default_mode() -> str:
    """Say "online" where a key is set, "offline" elsewhere; the environment's WANDB_MODE wins."""
    mode = os.environ.get("WANDB_MODE")
    if mode in ("online", "offline"):
        return mode
    if mode == "disabled":
        return "off"
    return "online" if has_key() else "offline"


def base_url() -> str:
    """The server that W&B is set up to talk to."""
    given = os.environ.get("WANDB_BASE_URL")
    if given:
        return given
    import wandb

    return str(wandb.setup().settings.base_url)


def has_key() -> bool:
    """Whether a key for the server is in the environment or in the netrc file, where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(base_url()).netloc
    try:
        keys = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(name in keys.hosts for name in (_PUBLIC if host in _PUBLIC else (host,)))


def why_unreachable() -> str | None:
    """Why the server does not answer; None where it does, whatever it says."""
    url = base_url()
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return None  # an answer
    except OSError as error:  # urllib's URLError is one
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # somebody answers; W&B has certificates of its own
            return None
        return f"{urlsplit(url).netloc} does not answer ({getattr(reason, 'strerror', None) or reason})"
    return None
