"""Whether a stored run still is what was measured: its files, and the tables made of them."""

from precision_explorer.audit.bundle import pack, verify_bundle
from precision_explorer.audit.verify import Verified, check_root, verify

__all__ = ["Verified", "check_root", "pack", "verify", "verify_bundle"]
