"""Which environment variables may hold a secret, and an environment without them.

A list of what is taken out, not of what is left in: the variables that decide how fast and how
exactly libraries compute are countless (of OpenMP, MKL, oneDNN, CUDA, NCCL, glibc, allocators,
loaders), and one that was dropped in silence would change what is measured into something that the
user does not serve with. So names that say what they hold are taken out, and values that look like
a secret whatever their name.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping

# Words of names, which `_` parts: OPENAI_API_KEY, MY_TOKEN_2, but not TOKENIZERS_PARALLELISM.
_WORDS = frozenset(
    {
        "APIKEY", "AUTH", "AUTHTOKEN", "BEARER", "COOKIE", "COOKIES", "CREDENTIAL", "CREDENTIALS",
        "CREDS", "DSN", "JWT", "KEY", "KEYS", "PASS", "PASSFILE", "PASSPHRASE", "PASSWD",
        "PASSWORD", "PASSWORDS", "PAT", "PRIVATE", "PWD", "SECRET", "SECRETS", "TOKEN", "TOKENS",
        "WEBHOOK",
    }
)  # fmt: skip
# Words that end with these: GITHUBTOKEN, PGPASSWORD, MYSQLPWD, ACCESSKEY.
_ENDS = ("TOKEN", "PASSWORD", "PASSWD", "SECRET", "APIKEY", "ACCESSKEY", "CREDENTIALS", "PASSFILE")
# Accounts of clouds and services, whole families of names, and ways to what holds secrets: agents
# that sign, programs that answer for a password, the desktop's key ring, files of settings.
_BEGINNINGS = (
    "AWS_", "AZURE_", "GOOGLE_", "GCP_", "GCLOUD_", "CLOUDSDK_", "OAUTH_", "VAULT_", "KAGGLE_",
    "WANDB_", "COMET_", "NEPTUNE_", "OPENAI_", "ANTHROPIC_", "VSCODE_GIT_",
)  # fmt: skip
_NAMES = frozenset(
    {
        "DATABASE_URL", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_CONFIG", "GIT_ASKPASS",
        "GNOME_KEYRING_CONTROL", "GPG_AGENT_INFO", "KUBECONFIG", "NETRC", "SSH_AGENT_PID",
        "SSH_ASKPASS", "SSH_AUTH_SOCK", "XAUTHORITY",
    }
)  # fmt: skip
_HARMLESS = frozenset({"PWD", "OLDPWD", "HF_HUB_DISABLE_IMPLICIT_TOKEN"})
"""Folders and a switch, whatever their names say."""
# A URL with a user (RFC 3986, 3.2.1), as of a proxy or a package index: a token may stand there,
# with a password or alone. A URL with a signature or a token among its parameters, a header as git
# is given one (GIT_CONFIG_VALUE_0), a private key (RFC 7468).
_WITHIN = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]+@"
    r"|://\S*[?&](?:\w*token|\w*key|sig|signature|x-amz-signature|password)="
    r"|authorization:\s*\S|-----BEGIN [A-Z ]*PRIVATE KEY",
    re.IGNORECASE,
)
# Tokens as their makers write them, alone: within a longer value, such as a PATH, they are chance.
_TOKEN = re.compile(
    r"(?:(?:Bearer|Basic) )?(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|glpat-[\w-]{16,}|A(?:KIA|SIA)[A-Z0-9]{16}|AIza[\w-]{30,}"
    r"|xox[abposr]-[\w-]{10,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,}|dckr_pat_[\w-]{20,}"
    r"|nvapi-[\w-]{20,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*)"
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""By which a process gets out, with user and password where the proxy asks for them. The one worker
that fetches, a module of `evaluate`, keeps these alone: the module's Python runs in it."""
FETCHING = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", *PROXIES)
"""What a process needs that fetches models, data or tasks from the hub; no worker does."""


def is_secret(name: str, value: str) -> bool:
    """Whether the variable `name` holds, or leads to, what no worker needs to know."""
    upper = name.upper()
    if upper in _HARMLESS:
        return False
    words = [word for word in re.split(r"[^A-Z0-9]+", upper) if word]
    return (
        upper in _NAMES
        or upper.startswith(_BEGINNINGS)
        or any(word in _WORDS or word.endswith(_ENDS) for word in words)
        or _WITHIN.search(value) is not None
        or _TOKEN.fullmatch(value.strip()) is not None
    )


def scrubbed(variables: Mapping[str, str], keep: Iterable[str] = ()) -> dict[str, str]:
    """`variables` without those that may hold a secret, but with those of the names `keep`, whose
    case does not count."""
    kept = {name.upper() for name in keep}
    return {n: v for n, v in variables.items() if n.upper() in kept or not is_secret(n, v)}


def scrub_own(keep: Iterable[str] = ()) -> None:
    """Take them out of this process's environment, but those of the names `keep`."""
    for name in os.environ.keys() - scrubbed(os.environ, keep).keys():
        del os.environ[name]


@contextlib.contextmanager
def environment(more: Mapping[str, str], keep: Iterable[str] = ()) -> Iterator[None]:
    """While it lasts, this process's environment is a scrubbed one with `more`, and with those of
    the names `keep`: for starting processes that can't be given one, as those of multiprocessing.
    Other threads see it too."""
    before = dict(os.environ)
    wanted = {**scrubbed(before, keep), **more}
    try:
        become(wanted)
        yield
    finally:
        become(before)


def become(wanted: Mapping[str, str]) -> None:
    """Make this process's environment `wanted`."""
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
