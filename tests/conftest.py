from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def pillows_own_limit() -> Iterator[None]:
    """Opening a picture sets Pillow's limit, which is the process's: other tests keep theirs."""
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before
