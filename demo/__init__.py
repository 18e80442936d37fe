"""A small trained model, its pictures, and the tour that `make demo` gives."""

from pathlib import Path

#: The model that `--bundle demo` means.
BUNDLE = Path(__file__).parent / "bundle"

#: The pictures of the tour.
PICTURES = Path(__file__).parent / "pictures"
