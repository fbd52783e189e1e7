"""A server that takes part in a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precision_explorer.endpoint import Address

if TYPE_CHECKING:
    from precision_explorer.endpoint.capabilities import Capabilities


@dataclass(frozen=True)
class Served:
    """`model`: its name on the server. `tokenizer`: the folder of the model's tokenizer, None where
    it is not here. `capabilities`: None where the server did not answer: it is asked once more when
    its turn comes. `remembered`: whether they are those of an earlier run of the sweep, as the
    server does not answer now."""

    address: Address
    model: str
    tokenizer: Path | None
    capabilities: Capabilities | None
    remembered: bool = False

    @property
    def takes_ids(self) -> bool:
        """Whether prompts go as token ids."""
        can = self.capabilities
        return self.tokenizer is not None and can is not None and can.token_ids

    def recipe(self) -> dict[str, Any]:
        """What a row's identity holds of the server: never its address, which names a machine."""
        # A server may call its model by a path.
        name = self.model.rstrip("/").split("/")[-1] if self.model[:1] in "/.~" else self.model
        known = {
            "server": self.address.digest(self.model),
            "served_model": name,
            "declared": self.address.label,
        }
        can = self.capabilities
        if can is None:
            return known
        prompts = "token ids" if self.takes_ids else "text"
        return known | {"prompts": prompts, "extras": list(can.extras), "reported": can.reported}


def capabilities_in(recipe: dict[str, Any]) -> Capabilities | None:
    """What a stored cell's recipe tells of its server; None where that had not answered either.
    That it scores is supposed: where it does not, it says so when it is asked."""
    from precision_explorer.endpoint.capabilities import Capabilities

    if "reported" not in recipe:
        return None
    ids = recipe["prompts"] == "token ids"
    return Capabilities(recipe["reported"], ids, True, None, tuple(recipe["extras"]))
