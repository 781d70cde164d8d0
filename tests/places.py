"""Where the tests find files of the checkout."""

from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
DOCS = ROOT / "docs"
CONF = resources.files("fleetgym.conf")
