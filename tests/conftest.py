from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def pillows_own_limit() -> Iterator[None]:
    """Opening a picture sets Pillow's limit, which is the process's: other tests keep theirs."""
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, which is afterwards as it was."""
    logger = logging.getLogger()
    level, handlers, raising = logger.level, list(logger.handlers), logging.raiseExceptions
    yield logger
    for handler in set(logger.handlers) - set(handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)
    logging.raiseExceptions = raising
    logging.captureWarnings(False)
